#define SF_ISA_NAME avx2
#define SF_VECTOR_BYTES 32
#include "isa.inl"

#define SF_ISA_NAME avx512
#define SF_VECTOR_BYTES 64
#include "isa.inl"

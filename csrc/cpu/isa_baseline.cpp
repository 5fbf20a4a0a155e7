#define SF_ISA_NAME baseline
#define SF_VECTOR_BYTES 16
#include "isa.inl"

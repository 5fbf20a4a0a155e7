// All kernels of one instruction set. Included by exactly one translation unit for each, which defines
//   SF_ISA_NAME      the table's name and the suffix of its symbol
//   SF_VECTOR_BYTES  the width of its registers
// and is compiled with that instruction set's flags (setup.py).
//
// Everything below has internal linkage and nothing of the C++ standard library is used: an inline function compiled here with
// AVX-512 could otherwise be the copy the linker keeps for the whole module, and crash an older CPU.
#include <sched.h>

#include "../kernels.h"

namespace spectral_fast {
namespace {

#include "simd.inl"
#include "arena.inl"
#include "team.inl"
#include "heuristics.inl"
#include "blocks.inl"
#include "load.inl"
#include "order.inl"
#include "pair.inl"
#include "householder.inl"
#include "norm.inl"
#include "direct_update.inl"
#include "direct_reduce.inl"
#include "direct.inl"
#include "update.inl"
#include "panel.inl"
#include "reduce.inl"
#include "gram.inl"
#include "kept.inl"
#include "band.inl"
#include "bidiagonal.inl"
#include "values.inl"
#include "workspace.inl"
#include "svdvals.inl"
#include "lanes.inl"
#include "dqds_lanes.inl"
#include "refine_lanes.inl"
#include "group_passes.inl"
#include "group_precise.inl"
#include "group.inl"
#include "products_tiles.inl"
#include "products.inl"
#include "panels.inl"
#include "symmetric.inl"
#include "look.inl"
#include "lanczos.inl"
#include "elementary.inl"
#include "powerlaw.inl"
#include "vectors.inl"
#include "stats.inl"
#include "peak.inl"

}  // namespace

#define SF_STRING_(x) #x
#define SF_STRING(x) SF_STRING_(x)
#define SF_JOIN_(a, b) a##b
#define SF_JOIN(a, b) SF_JOIN_(a, b)

extern const KernelTable SF_JOIN(kernels_, SF_ISA_NAME);
const KernelTable SF_JOIN(kernels_, SF_ISA_NAME) = {
    SF_STRING(SF_ISA_NAME),
    {svdvals_workspace_bytes<float>, svdvals_float32<false>, gram_workspace_bytes, svdvals_float32<true>, group_size<float>,
     group_workspace_bytes<float>, svdvals_group_float32, gram_product_sizes<float>, gram_product_begin<float>,
     gram_product_piece<float>, gram_product_end<float>, look_sizes<float>, look_arrays<float>, look_piece<float>,
     look_small<float>, lanczos_sizes<float>, lanczos_arrays<float>, lanczos_piece<float>, lanczos_small<float>},
    {svdvals_workspace_bytes<double>, svdvals_float64<false>, gram_workspace_bytes, svdvals_float64<true>, group_size<double>,
     group_workspace_bytes<double>, svdvals_group_float64, gram_product_sizes<double>, gram_product_begin<double>,
     gram_product_piece<double>, gram_product_end<double>, look_sizes<double>, look_arrays<double>, look_piece<double>,
     look_small<double>, lanczos_sizes<double>, lanczos_arrays<double>, lanczos_piece<double>, lanczos_small<double>},
    stats_workspace_bytes,
    stats,
    ranksize_slope,
    fit_powerlaw,
    hill_alpha,
    peak,
    vectors_workspace_bytes,
    vectors,
};

}  // namespace spectral_fast

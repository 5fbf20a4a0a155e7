// Workspace is one block, laid out by the constructors of the ...Workspace structures.

// Hands out consecutive aligned pieces; with base == nullptr it only adds up their size.
struct Arena {
  char* base;
  std::size_t used;

  template <typename U>
  U* take(int64_t count) {
    char* p = base ? base + used : nullptr;
    used += (static_cast<std::size_t>(count) * sizeof(U) + workspace_alignment - 1) / workspace_alignment * workspace_alignment;
    return reinterpret_cast<U*>(p);
  }
};

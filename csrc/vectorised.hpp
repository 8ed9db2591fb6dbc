// Compiles loops for vector instructions.

#pragma once

// The widest vectors that the machine has, chosen when the library is loaded; it runs on any x86-64.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif
#define INLINE inline __attribute__((always_inline))

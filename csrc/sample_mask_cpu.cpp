// sample_mask on the CPU, as a plain C library: draws which tokens of a view are masked; threads over samples, vectors
// over tokens. kernels/mask_native.py calls it; kernels/sample_mask.py describes the operation.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

#include "philox.hpp"

struct Draw {
    int64_t batch, n, keep, decode;
    int64_t seed, step, stream;
    const int64_t* sample_ids;  // (batch,), or null: 0, 1, 2, ...
    const int64_t* step_at;     // address of the step; null: use `step`
    int64_t threads;            // at most `batch`
};

namespace {

VECTORISED void draw_words(
    uint64_t seed, uint32_t sample, uint32_t step, uint32_t stream, int32_t n, uint32_t* first, uint32_t* second) {
    const uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma omp simd
    for (int32_t token = 0; token < n; ++token) {
        uint32_t c0 = token, c1 = sample, c2 = step, c3 = stream;
        philox(k0, k1, c0, c1, c2, c3);
        first[token] = c0, second[token] = c1;
    }
}

// Keys of a row all differ: of two equal words the one at the lower position gets the larger key.
INLINE uint64_t key(uint32_t word, int64_t token, int64_t n) { return uint64_t(word) << 32 | uint32_t(n - 1 - token); }

// A float's bits as a word that sorts like the floats, which are never NaN nor -0.
INLINE uint32_t in_order(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

// The least of the `top` largest of n keys; larger than all keys where `top` is 0. scratch (n,)
uint64_t least_of_top(const uint64_t* keys, int64_t n, int64_t top, uint64_t* scratch) {
    if (top == n) return 0;
    if (top == 0) return ~uint64_t(0);
    std::memcpy(scratch, keys, n * sizeof(uint64_t));
    std::nth_element(scratch, scratch + top - 1, scratch + n, std::greater<uint64_t>());
    return scratch[top - 1];
}

// One row of the plan; keys, scratch (n,)
void plan_row(
    const Draw& d, const uint32_t* first, const uint32_t* second, const float* priority, uint64_t* keys,
    uint64_t* scratch, int32_t* keep, int32_t* masked, int32_t* slot) {
    const int64_t n = d.n, n_masked = n - d.keep;
    for (int64_t i = 0; i < n; ++i) keys[i] = key(priority ? in_order(priority[i]) : first[i], i, n);
    const uint64_t least = least_of_top(keys, n, n_masked, scratch);
    int64_t seen = 0, hidden = 0;
    for (int64_t i = 0; i < n; ++i)
        if (keys[i] < least) {
            keep[seen] = int32_t(i);
            slot[i] = int32_t(seen++);
        } else {
            slot[i] = -1;
            keys[hidden++] = key(second[i], i, n);
        }
    const uint64_t least_decoded = least_of_top(keys, n_masked, d.decode, scratch);
    for (int64_t i = 0; i < n_masked; ++i)
        if (keys[i] >= least_decoded) *masked++ = int32_t(n - 1 - uint32_t(keys[i]));
}

}  // namespace

// words (2, batch, n): those that draw the mask, those that draw the decoded subset.
extern "C" void sample_mask_words(const Draw* draw, uint32_t* words) {
    const Draw& d = *draw;
    const int64_t step = d.step_at ? *d.step_at : d.step;
#pragma omp parallel for num_threads(d.threads)
    for (int64_t b = 0; b < d.batch; ++b) {
        uint32_t *first = words + b * d.n, *second = words + (d.batch + b) * d.n;
        const int64_t sample = d.sample_ids ? d.sample_ids[b] : b;
        draw_words(d.seed, uint32_t(sample), uint32_t(step), uint32_t(d.stream), int32_t(d.n), first, second);
    }
}

// keep (batch, keep), masked (batch, decode), slot (batch, n) by words, or by priority (batch, n) where it is not null.
// scratch (threads, 2, n)
extern "C" void sample_mask_plan(
    const Draw* draw, const uint32_t* words, const float* priority, uint64_t* scratch, int32_t* keep, int32_t* masked,
    int32_t* slot) {
    const Draw& d = *draw;
#pragma omp parallel for num_threads(d.threads)
    for (int64_t part = 0; part < d.threads; ++part)
        for (int64_t b = d.batch * part / d.threads; b < d.batch * (part + 1) / d.threads; ++b)
            plan_row(
                d, words + b * d.n, words + (d.batch + b) * d.n, priority ? priority + b * d.n : nullptr,
                scratch + 2 * part * d.n, scratch + (2 * part + 1) * d.n, keep + b * d.keep, masked + b * d.decode,
                slot + b * d.n);
}

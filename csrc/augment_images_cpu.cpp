// augment_images on the CPU, as a plain C library: moves stored frames, scales them and changes their brightness.
// kernels/augment_images/operation.py describes the operation. Threads run over samples, and over rows of the samples
// that are left; vectors run along rows.
//
// A sample takes two passes. The first writes the moved rows and finds each row's extrema; the second scales, applies
// gamma and adds noise, in blocks of calls of the generator. Neither rows nor blocks depend on the number of threads or
// on the batch, so the result's bits do not either. An image that is not moved is read twice and written once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "augment_images_move.hpp"
#include "philox.hpp"

namespace {

constexpr float FLAT = 0x1p-10f;  // as in kernels/augment_images/torch_form.py
constexpr int CALLS = 512;        // calls of the generator in a block
constexpr int PER_CALL = 8;       // normal values from each call

INLINE int32_t bits(float v) {
    int32_t i;
    std::memcpy(&i, &v, 4);
    return i;
}

INLINE float from_bits(int32_t i) {
    float v;
    std::memcpy(&v, &i, 4);
    return v;
}

// log2 of a positive normal number: exponent + log2(1 + f), sqrt(1/2) <= 1 + f < sqrt(2). The polynomial is f times a
// minimax fit of log2(1 + f) / f, off by 6e-9, so that it is as exact relative to small results: some 2e-7.
INLINE float log_2(float v) {
    const int32_t exponent = (bits(v) - 0x3f3504f3) >> 23;
    const float f = from_bits(bits(v) - exponent * (1 << 23)) - 1;
    float p = -0.11297482997179031f;
    p = p * f + 0.18782666325569153f;
    p = p * f - 0.19061265885829926f;
    p = p * f + 0.2042960226535797f;
    p = p * f - 0.2396365851163864f;
    p = p * f + 0.28858527541160583f;
    p = p * f - 0.3606964349746704f;
    p = p * f + 0.4808978974342346f;
    p = p * f - 0.7213473320007324f;
    p = p * f + 1.4426950216293335f;
    return float(exponent) + p * f;
}

// 2^v for v from -126 to 126, by a minimax fit over -1/2 .. 1/2 off by 2e-9: some 1e-7 relative.
INLINE float exp_2(float v) {
    constexpr float ROUND = 0x1.8p23f;
    v = v < -126 ? -126 : v > 126 ? 126 : v;
    const float rounded = v + ROUND, f = v - (rounded - ROUND);
    float p = 0.0001534581242594868f;
    p = p * f + 0.0013399930903688073f;
    p = p * f + 0.009618489071726799f;
    p = p * f + 0.05550328642129898f;
    p = p * f + 0.24022646248340607f;
    p = p * f + 0.6931471824645996f;
    p = p * f + 1;
    return from_bits(bits(p) + (bits(rounded) - bits(ROUND)) * (1 << 23));
}

// words[w][i]: word w of call first + i of the generator.
VECTORISED void draw(uint32_t key_0, uint32_t key_1, uint32_t first, uint32_t (*words)[CALLS]) {
#pragma omp simd
    for (int i = 0; i < CALLS; ++i) {
        uint32_t c0 = first + i, c1 = 0, c2 = 0, c3 = 0;
        philox(key_0, key_1, c0, c1, c2, c3);
        words[0][i] = c0, words[1][i] = c1, words[2][i] = c2, words[3][i] = c3;
    }
}

// The Box-Muller pair of each word: the radius comes from its high half, the angle from its low half, as
// the nearest quarter turn (two bits) and the rest.
VECTORISED void normal(const uint32_t* words, int64_t n, float* of_cos, float* of_sin) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const float uniform = (float(int32_t(words[i] >> 16)) + 0.5f) * 0x1p-16f;
        const float radius = std::sqrt(-1.3862943611198906f * log_2(uniform));
        const uint32_t turned = (words[i] & 0xFFFF) + 8192;
        const float angle = float(int32_t(turned & 16383) - 8192) * 9.587379924285257e-05f, u = angle * angle;
        const float sine = (((-1.9504022e-4f * u + 8.3320369e-3f) * u - 1.66666507e-1f) * u + 1) * angle;
        const float cosine = (((2.43799295e-5f * u - 1.38866192e-3f) * u + 4.16666167e-2f) * u - 0.5f) * u + 1;
        const bool odd = turned & 16384;
        const float a = odd ? sine : cosine, b = odd ? cosine : sine;
        of_cos[i] = radius * ((turned + 16384) & 32768 ? -a : a);
        of_sin[i] = radius * (turned & 32768 ? -b : b);
    }
}

struct Brightness {
    float low, spread, gamma, of_black, noise;  // gamma 1 and noise 0 change nothing; of_black: 0^gamma
};

template <bool GAMMA, bool NOISE, class T>
INLINE void finish(const T* in, const float* outside, const float* drawn, Brightness f, int64_t n, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float v = (in[i] - f.low) / f.spread;
        if (GAMMA) v = v > 0 ? exp_2(f.gamma * log_2(v)) : f.of_black;
        if (NOISE) {
            v += f.noise * drawn[i];
            v = v > 0 ? v : 0;
            v = v < 1 ? v : 1;
        }
        out[i] = outside[i] == 0 ? v : 0;
    }
}

template <class T>
INLINE void finish_any(
    const T* in, const float* outside, const float* drawn, const Brightness& f, int64_t n, float* out) {
    if (f.gamma != 1 && f.noise != 0)
        finish<true, true>(in, outside, drawn, f, n, out);
    else if (f.gamma != 1)
        finish<true, false>(in, outside, drawn, f, n, out);
    else if (f.noise != 0)
        finish<false, true>(in, outside, drawn, f, n, out);
    else
        finish<false, false>(in, outside, drawn, f, n, out);
}

VECTORISED void finish_moved(const float* outside, const float* drawn, const Brightness& f, int64_t n, float* out) {
    finish_any(out, outside, drawn, f, n, out);
}

VECTORISED void finish_stored(
    const uint8_t* in, const float* outside, const float* drawn, const Brightness& f, int64_t n, float* out) {
    finish_any(in, outside, drawn, f, n, out);
}

int64_t calls_of(const Request& r) { return (r.T * r.X * r.Y * r.Z + PER_CALL - 1) / PER_CALL; }

// The second pass over block `block` of a sample: the pixels of CALLS calls, which lie in eight runs.
void brighten(const Request& r, const Plan& p, int64_t b, int64_t block) {
    const int64_t n = r.Y * r.Z, pixels = r.T * r.X * n, calls = calls_of(r), first = block * CALLS;
    Brightness f{INF, 0, r.gamma ? float(r.gamma[b]) : 1, 0, r.noise ? float(r.noise[b]) : 0};
    f.low = *std::min_element(p.low.begin(), p.low.end());
    const float high = *std::max_element(p.high.begin(), p.high.end());
    f.spread = high - f.low < FLAT ? INF : high - f.low;
    f.of_black = std::pow(0.0f, f.gamma);
    uint32_t words[4][CALLS];
    float drawn[PER_CALL][CALLS];
    if (f.noise != 0) {
        const uint64_t key = r.noise_key[b];
        draw(uint32_t(key), uint32_t(key >> 32), uint32_t(first), words);
        normal(words[0], 4 * CALLS, drawn[0], drawn[4]);
    }
    for (int run = 0; run < PER_CALL; ++run) {
        int64_t at = run * calls + first;
        const int64_t start = at, end = std::min(run * calls + std::min(first + CALLS, calls), pixels);
        while (at < end) {
            const int64_t row = at / n, in_row = at - row * n, part = std::min(end - at, n - in_row);
            float* out = r.out + b * pixels + at;
            const float* noise = drawn[run] + (at - start);
            if (row / r.X >= p.extent[0] || row % r.X >= p.extent[1])
                std::memset(out, 0, part * sizeof(float));
            else if (p.way == AS_STORED)
                finish_stored(r.frames + b * pixels + at, &p.outside[in_row], noise, f, part, out);
            else
                finish_moved(&p.outside[in_row], noise, f, part, out);
            at += part;
        }
    }
}

int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace

// 0, or 1 where memory runs out.
extern "C" int augment_images(const Request* request) {
    const Request& r = *request;
    const int64_t blocks = r.maps ? 0 : (calls_of(r) + CALLS - 1) / CALLS;
    const int64_t alone = r.B - r.B % r.threads;  // samples that one thread computes alone; threads share the others
    try {
        std::vector<Plan> plans(r.B, Plan(r));
        std::vector<Scratch> scratch(r.threads, Scratch(r));
#pragma omp parallel num_threads(r.threads)
        {
            Scratch& mine = scratch[thread()];
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t b = 0; b < alone; ++b) {
                fill(r, b, plans[b]);
                for (int64_t x = 0; x < r.X; ++x) move_rows(r, plans[b], b, x, mine);
                for (int64_t block = 0; block < blocks; ++block) brighten(r, plans[b], b, block);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t b = alone; b < r.B; ++b) fill(r, b, plans[b]);
#pragma omp for schedule(dynamic, 4)
            for (int64_t i = 0; i < (r.B - alone) * r.X; ++i)
                move_rows(r, plans[alone + i / r.X], alone + i / r.X, i % r.X, mine);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < (r.B - alone) * blocks; ++i)
                brighten(r, plans[alone + i / blocks], alone + i / blocks, i % blocks);
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

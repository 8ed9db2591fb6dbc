// Depthwise convolution over the positions of visible tokens on the CPU, as a plain C library: threads over tokens,
// vectors over channels. kernels/depthwise_native.py calls it; kernels/sparse_depthwise_conv.py describes it.

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "vectorised.hpp"

struct Shape {
    int64_t B, K, N;               // samples, visible tokens, tokens of the grid
    int32_t grid[3], block[3], kernel[3];
    int32_t C, threads;
    const int32_t* keep;           // (B, K)
    const int32_t* slot;           // (B, N)
};

namespace {

using Pair = std::pair<int32_t, int32_t>;

// The products that one neighbouring token adds: for each sum, the rows of its two factors.
struct Neighbour {
    std::array<int, 3> offset;
    std::vector<std::pair<int32_t, std::vector<Pair>>> sums;
};

// by_tap: sums are taps, of (output, input) rows; else they are outputs, of (tap, input) rows.
std::vector<Neighbour> neighbours(const Shape& s, bool by_tap) {
    std::map<std::array<int, 3>, std::map<int32_t, std::vector<Pair>>> found;
    const int P[3] = {s.block[0], s.block[1], s.block[2]}, T[3] = {s.kernel[0], s.kernel[1], s.kernel[2]};
    int at[3], tap[3];
    for (int out = 0; out < P[0] * P[1] * P[2]; ++out)
        for (int t = 0; t < T[0] * T[1] * T[2]; ++t) {
            at[2] = out % P[2], at[1] = out / P[2] % P[1], at[0] = out / (P[2] * P[1]);
            tap[2] = t % T[2], tap[1] = t / T[2] % T[1], tap[0] = t / (T[2] * T[1]);
            std::array<int, 3> offset{};
            int in = 0;
            for (int axis = 0; axis < 3; ++axis) {
                const int position = at[axis] + tap[axis] - T[axis] / 2;
                offset[axis] = position >= 0 ? position / P[axis] : -((-position + P[axis] - 1) / P[axis]);
                in = in * P[axis] + position - offset[axis] * P[axis];
            }
            found[offset][by_tap ? t : out].push_back({by_tap ? out : t, in});
        }
    std::vector<Neighbour> all;
    for (auto& [offset, sums] : found) all.push_back({offset, {sums.begin(), sums.end()}});
    return all;
}

// The row of the neighbour's slot in `keep`, -1 where it is off the grid or not visible.
int64_t find(const Shape& s, int64_t sample, int32_t token, const std::array<int, 3>& offset) {
    const int at[3] = {token / (s.grid[2] * s.grid[1]), token / s.grid[2] % s.grid[1], token % s.grid[2]};
    int64_t other = 0;
    for (int axis = 0; axis < 3; ++axis) {
        const int place = at[axis] + offset[axis];
        if (place < 0 || place >= s.grid[axis]) return -1;
        other = other * s.grid[axis] + place;
    }
    const int32_t slot = s.slot[sample * s.N + other];
    return slot < 0 ? -1 : sample * s.K + slot;
}

// The compiler splits vectors that are too wide for the machine.
typedef float Vector __attribute__((vector_size(64), aligned(4)));
constexpr int LANES = 16;

// sum[c] += sum over pairs of a[first][c] * b[second][c], for V vectors of channels, which stay in registers
template <int V>
inline __attribute__((always_inline)) void add_products(
    float* sum, const Pair* pairs, size_t n, const float* a, const float* b, int64_t C) {
    Vector s[V];
    for (int v = 0; v < V; ++v) s[v] = *reinterpret_cast<const Vector*>(sum + v * LANES);
    for (size_t i = 0; i < n; ++i) {
        const float *x = a + pairs[i].first * C, *y = b + pairs[i].second * C;
        for (int v = 0; v < V; ++v)
            s[v] += *reinterpret_cast<const Vector*>(x + v * LANES) * *reinterpret_cast<const Vector*>(y + v * LANES);
    }
    for (int v = 0; v < V; ++v) *reinterpret_cast<Vector*>(sum + v * LANES) = s[v];
}

VECTORISED void add_neighbour(const Neighbour& neighbour, const float* a, const float* b, int64_t C, float* sums) {
    for (const auto& [row, pairs] : neighbour.sums) {
        float* sum = sums + row * C;
        int64_t c = 0;
        for (; c + 4 * LANES <= C; c += 4 * LANES) add_products<4>(sum + c, pairs.data(), pairs.size(), a + c, b + c, C);
        for (; c + LANES <= C; c += LANES) add_products<1>(sum + c, pairs.data(), pairs.size(), a + c, b + c, C);
        for (; c < C; ++c)
            for (const Pair& pair : pairs) sum[c] += a[pair.first * C + c] * b[pair.second * C + c];
    }
}

int64_t product(const int32_t* extents) { return int64_t(extents[0]) * extents[1] * extents[2]; }

}  // namespace

// out (B, K, block, C) = bias + convolution of x (B, K, block, C) with weight (kernel, C); bias (C,) or null.
// 0, or 1 where memory runs out.
extern "C" int depthwise_conv(const Shape* shape, const float* x, const float* weight, const float* bias, float* out) {
    const Shape& s = *shape;
    const int64_t positions = product(s.block), row_size = positions * s.C;
    try {
        const auto table = neighbours(s, false);
#pragma omp parallel for schedule(dynamic, 16) num_threads(s.threads)
        for (int64_t row = 0; row < s.B * s.K; ++row) {
            float* sums = out + row * row_size;
            for (int64_t p = 0; p < positions; ++p) {
                if (bias)
                    std::memcpy(sums + p * s.C, bias, s.C * sizeof(float));
                else
                    std::memset(sums + p * s.C, 0, s.C * sizeof(float));
            }
            for (const Neighbour& neighbour : table) {
                const int64_t other = find(s, row / s.K, s.keep[row], neighbour.offset);
                if (other >= 0) add_neighbour(neighbour, weight, x + other * row_size, s.C, sums);
            }
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// gradient (kernel, C) of the weight for dout and x (B, K, block, C): a partial sum for each of `chunks` runs of tokens,
// whatever the threads, then their sum in order. partial (chunks, kernel, C) is scratch. 0, or 1 as above.
extern "C" int depthwise_conv_dw(
    const Shape* shape, const float* dout, const float* x, int64_t chunks, float* partial, float* dweight) {
    const Shape& s = *shape;
    const int64_t rows = s.B * s.K, row_size = product(s.block) * s.C, n = product(s.kernel) * s.C;
    try {
        const auto table = neighbours(s, true);
#pragma omp parallel for schedule(dynamic, 1) num_threads(s.threads)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            float* sums = partial + chunk * n;
            std::memset(sums, 0, n * sizeof(float));
            for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row)
                for (const Neighbour& neighbour : table) {
                    const int64_t other = find(s, row / s.K, s.keep[row], neighbour.offset);
                    if (other >= 0) add_neighbour(neighbour, dout + row * row_size, x + other * row_size, s.C, sums);
                }
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    std::memset(dweight, 0, n * sizeof(float));
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t i = 0; i < n; ++i) dweight[i] += partial[chunk * n + i];
    return 0;
}

// Farneback's flow on the CPU, as a plain C library: threads over frames and over pairs, vectors along rows.
// kernels/optical_flow/operation.py describes the method and calls it; the arithmetic is in optical_flow.cuh.

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "optical_flow.cuh"
#include "vectorised.hpp"

using namespace flow;

// Weighted sums along one axis: out[i] = sum over k of weight[k][i] * in[index[k][i]].
struct AxisTaps {
    int taps;
    const int32_t* index;
    const float* weight;
};

struct Level {
    int X, Y;
    AxisTaps image_x, image_y;  // from the frame
    AxisTaps flow_x, flow_y;    // from the next coarser level's flow; unused at the coarsest
};

struct Request {
    const void* frames;     // (B, T, X, Y, Z), uint8, half or float by item_size 1, 2 or 4
    void* out;              // flow (B, P, 2, X, Y, Z), half or float by out_size, or maps (B, G, X, Y, Z), float
    const int32_t* used;    // (F,) frames that some pair names
    const int32_t* pairs;   // (P, 2) positions in `used`
    const Level* levels;    // coarse to fine
    const Filters* filters;
    const int32_t* begin;   // (G + 1,) group g is members[begin[g]] .. members[begin[g + 1] - 1]
    const int32_t* members; // pairs
    const float* shares;    // weight of each member's magnitude in its group's mean
    int64_t B, T, X, Y, Z, F, P, G;  // G = 0: the flow is computed, else maps
    int item_size, out_size, n_levels, iterations, window, poly_n, refine, threads;
};

enum { DONE = 0, NON_FINITE = 1, NO_MEMORY = 2 };

namespace {

using Buffer = std::unique_ptr<float[]>;

Buffer allocate(int64_t n) { return Buffer(new (std::nothrow) float[n]); }

float as_float(uint8_t v) { return v; }
float as_float(uint16_t v) { return half_to_float(v); }
float as_float(float v) { return v; }

// One slice of one frame, every Z-th value; false where a value is not finite.
template <class T>
bool read_slice(const T* in, int64_t n, int64_t Z, float* out) {
    float sum = 0;  // sum of v - v: 0, or NaN where a value is not finite
    for (int64_t i = 0; i < n; ++i) {
        out[i] = as_float(in[i * Z]);
        sum += out[i] - out[i];
    }
    return sum == 0;
}

VECTORISED void add_scaled(const float* in, float weight, int n, float* out) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] += weight * in[i];
}

VECTORISED void add_gathered(const float* in, const int32_t* index, const float* weight, int n, float* out) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] += weight[i] * in[index[i]];
}

// A plane (., Y_in) resampled to (X, Y); row: Y_in values.
void resample(const float* in, int Y_in, int X, int Y, const AxisTaps& tx, const AxisTaps& ty, float* row, float* out) {
    for (int x = 0; x < X; ++x) {
        std::memset(row, 0, sizeof(float) * Y_in);
        for (int k = 0; k < tx.taps; ++k)
            add_scaled(in + int64_t(tx.index[k * X + x]) * Y_in, tx.weight[k * X + x], Y_in, row);
        float* to = out + int64_t(x) * Y;
        std::memset(to, 0, sizeof(float) * Y);
        for (int k = 0; k < ty.taps; ++k) add_gathered(row, ty.index + k * Y, ty.weight + k * Y, Y, to);
    }
}

// `values` (Y,), its first and last value repeated on either side.
void repeat_ends(float* values, int Y, int width) {
    for (int k = 1; k <= width; ++k) values[-k] = values[0], values[Y - 1 + k] = values[Y - 1];
}

template <int RADIUS>
FLOW_INLINE void columns_of_row(const float* image, int x, int X, int Y, const Filters& f, float* g, float* d, float* q) {
#pragma omp simd
    for (int y = 0; y < Y; ++y) {
        const Moments m = filter_column<RADIUS>(image, x, y, X, Y, f);
        g[y] = m.g, d[y] = m.d, q[y] = m.q;
    }
}

template <int RADIUS>
FLOW_INLINE void expansion_of_row(const float* g, const float* d, const float* q, int plane, int Y, const Filters& f, float* out) {
#pragma omp simd
    for (int y = 0; y < Y; ++y) {
        const Expansion e = filter_row<RADIUS>(g + y, d + y, q + y, f);
        out[y] = e.bx, out[plane + y] = e.by;
        out[2 * plane + y] = e.axx, out[3 * plane + y] = e.ayy, out[4 * plane + y] = e.axy;
    }
}

VECTORISED void columns_5(const float* image, int x, int X, int Y, const Filters& f, float* g, float* d, float* q) {
    columns_of_row<5>(image, x, X, Y, f, g, d, q);
}
VECTORISED void columns_7(const float* image, int x, int X, int Y, const Filters& f, float* g, float* d, float* q) {
    columns_of_row<7>(image, x, X, Y, f, g, d, q);
}
VECTORISED void expansion_5(const float* g, const float* d, const float* q, int plane, int Y, const Filters& f, float* out) {
    expansion_of_row<5>(g, d, q, plane, Y, f, out);
}
VECTORISED void expansion_7(const float* g, const float* d, const float* q, int plane, int Y, const Filters& f, float* out) {
    expansion_of_row<7>(g, d, q, plane, Y, f, out);
}

// Polynomial expansion of a plane; rows: 3 (Y + 2 MAX_RADIUS) values.
void expand(const float* image, int X, int Y, int poly_n, const Filters& f, float* rows, float* out) {
    const int stride = Y + 2 * MAX_RADIUS;
    float *g = rows + MAX_RADIUS, *d = g + stride, *q = d + stride;
    for (int x = 0; x < X; ++x) {
        (poly_n == 5 ? columns_5 : columns_7)(image, x, X, Y, f, g, d, q);
        repeat_ends(g, Y, poly_n), repeat_ends(d, Y, poly_n), repeat_ends(q, Y, poly_n);
        (poly_n == 5 ? expansion_5 : expansion_7)(g, d, q, X * Y, Y, f, out + int64_t(x) * Y);
    }
}

VECTORISED void equations_of_row(const float* first, const float* second, int x, int X, int Y, const float* u,
                                 const float* v, const float* weights, float* out, int stride) {
    const float weight = border_weight(x, X);
#pragma omp simd
    for (int y = 0; y < Y; ++y) {
        const Sums s = normal_equations(first, second, x, y, X, Y, u[y], v[y], weight * weights[y]);
        out[y] = s.gxx, out[stride + y] = s.gxy, out[2 * stride + y] = s.gyy;
        out[3 * stride + y] = s.hx, out[4 * stride + y] = s.hy;
    }
}

// out[y] = sum of in[y - half .. y + half], in tiles that stay in registers; Y a multiple of TILE.
constexpr int TILE = 32;
VECTORISED void box_of_row(const float* in, int half, int Y, float* out) {
    for (int y0 = 0; y0 < Y; y0 += TILE) {
        float sum[TILE] = {};
        for (int k = -half; k <= half; ++k)
            for (int i = 0; i < TILE; ++i) sum[i] += in[y0 + i + k];
        for (int i = 0; i < TILE; ++i) out[y0 + i] = sum[i];
    }
}

VECTORISED void solve_row(const float* sums, int stride, int Y, float scale, float* u, float* v) {
#pragma omp simd
    for (int y = 0; y < Y; ++y) {
        const Motion m = solve({sums[y], sums[stride + y], sums[2 * stride + y], sums[3 * stride + y], sums[4 * stride + y]}, scale);
        u[y] = m.u, v[y] = m.v;
    }
}

int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Floats that `iterate` works in.
int64_t iterate_scratch(int64_t Y, int window) {
    const int64_t wide = round_up(int(Y), TILE);
    return COEFFICIENTS * (wide + window) + (window + 1) * COEFFICIENTS * wide + wide;
}

// One iteration at one level: equations row by row, box filter, solution. Row x of the flow is overwritten after the
// equations of all rows up to x + window / 2 have been computed from the old flow.
void iterate(const float* first, const float* second, int X, int Y, int window, float* scratch, float* u, float* v) {
    const int half = window / 2, wide = round_up(Y, TILE), padded = wide + window, row_size = COEFFICIENTS * wide;
    const float scale = 1.f / float(window * window);
    float *equations = scratch + half, *ring = scratch + COEFFICIENTS * padded;
    float *sums = ring + window * row_size, *weights = sums + row_size;
    std::memset(scratch, 0, sizeof(float) * COEFFICIENTS * padded);  // values beyond Y are summed but never used
    for (int y = 0; y < Y; ++y) weights[y] = border_weight(y, Y);
    const auto row = [&](int x) { return ring + clamp(x, X) % window * row_size; };
    const auto make_row = [&](int x) {
        equations_of_row(first, second, x, X, Y, u + int64_t(x) * Y, v + int64_t(x) * Y, weights, equations, padded);
        for (int c = 0; c < COEFFICIENTS; ++c) {
            repeat_ends(equations + c * padded, Y, half);
            box_of_row(equations + c * padded, half, wide, row(x) + c * wide);
        }
    };
    for (int x = 0; x < half && x < X; ++x) make_row(x);
    for (int x = 0; x < X; ++x) {
        const bool anew = x % STRIP == 0;
        if (!anew) add_scaled(row(x - half - 1), -1.f, row_size, sums);  // before its place in the ring is overwritten
        if (x + half < X) make_row(x + half);
        if (anew) std::memset(sums, 0, sizeof(float) * row_size);
        for (int k = anew ? -half : half; k <= half; ++k) add_scaled(row(x + k), 1.f, row_size, sums);
        solve_row(sums, wide, Y, scale, u + int64_t(x) * Y, v + int64_t(x) * Y);
    }
}

VECTORISED void couple_row(float* equations, int64_t stride, int Y) {
#pragma omp simd
    for (int y = 0; y < Y; ++y) {
        float* e = equations + y;
        const Coupling c = couple({e[0], e[stride], e[2 * stride], e[3 * stride], e[4 * stride]});
        e[0] = c.pxx, e[stride] = c.pxy, e[2 * stride] = c.pyy, e[3 * stride] = c.qx, e[4 * stride] = c.qy;
    }
}

// One row of a sweep: `last` becomes the new flow. It takes the flow's rows before, at and after it, and its coupling.
VECTORISED void sweep_row(const float* coupling, int64_t plane, const float* before, const float* at, const float* after,
                          int Y, float omega, float* last) {
    const auto pixel = [&](int y, int left, int right) {
        const float u = before[y] + after[y] + at[left] + at[right];
        const float v = before[plane + y] + after[plane + y] + at[plane + left] + at[plane + right];
        const float* c = coupling + y;
        last[y] = accelerated(c[0] * u + c[plane] * v + c[3 * plane], last[y], omega);
        last[plane + y] = accelerated(c[plane] * u + c[2 * plane] * v + c[4 * plane], last[plane + y], omega);
    };
    pixel(0, 0, Y > 1 ? 1 : 0);
#pragma omp simd
    for (int y = 1; y < Y - 1; ++y) pixel(y, y - 1, y + 1);
    if (Y > 1) pixel(Y - 1, Y - 2, Y - 1);
}

// Refines a flow (2, X, Y); returns the result's address: that of the flow or `other`. scratch: 5 X Y + Y values.
float* refine(const float* first, const float* second, int X, int Y, int sweeps, float* scratch, float* flow, float* other) {
    const int64_t plane = int64_t(X) * Y;
    float* weights = scratch + COEFFICIENTS * plane;
    for (int y = 0; y < Y; ++y) weights[y] = border_weight(y, Y);
    for (int x = 0; x < X; ++x) {
        float* row = scratch + int64_t(x) * Y;
        const float* u = flow + int64_t(x) * Y;
        equations_of_row(first, second, x, X, Y, u, u + plane, weights, row, int(plane));
        couple_row(row, plane, Y);
    }
    std::memcpy(other, flow, sizeof(float) * 2 * plane);
    float omega = 1.f;
    for (int k = 0; k < sweeps; ++k) {
        omega = next_omega(k, omega);
        for (int x = 0; x < X; ++x) {
            const auto row = [&](int i) { return int64_t(clamp(i, X)) * Y; };
            sweep_row(scratch + row(x), plane, flow + row(x - 1), flow + row(x), flow + row(x + 1), Y, omega, other + row(x));
        }
        std::swap(flow, other);
    }
    return flow;
}

// Addresses of a slice's expansions: those of all used frames, level after level.
struct Pyramid {
    int64_t start[64], size;

    explicit Pyramid(const Request& r) : size(0) {
        for (int l = 0; l < r.n_levels; ++l) {
            start[l] = size;
            size += int64_t(COEFFICIENTS) * r.levels[l].X * r.levels[l].Y;
        }
    }
};

// Expansions of one frame of one slice at all levels; scratch: 2 X Y + Y + 3 (Y + 2 MAX_RADIUS) values.
bool expand_frame(const Request& r, const Pyramid& pyramid, int64_t slice, int64_t f, float* scratch, float* out) {
    const int64_t n = r.X * r.Y, b = slice / r.Z, z = slice % r.Z;
    const int64_t at = (b * r.T + r.used[f]) * n * r.Z + z;
    float *frame = scratch, *image = frame + n, *row = image + n, *rows = row + r.Y;
    const bool finite = r.item_size == 1   ? read_slice((const uint8_t*)r.frames + at, n, r.Z, frame)
                        : r.item_size == 2 ? read_slice((const uint16_t*)r.frames + at, n, r.Z, frame)
                                           : read_slice((const float*)r.frames + at, n, r.Z, frame);
    for (int l = 0; l < r.n_levels; ++l) {
        const Level& level = r.levels[l];
        resample(frame, int(r.Y), level.X, level.Y, level.image_x, level.image_y, row, image);
        expand(image, level.X, level.Y, r.poly_n, *r.filters, rows, out + pyramid.start[l]);
    }
    return finite;
}

// Flow (2, X, Y) of one pair of one slice, coarse to fine; the result lies in scratch: 4 X Y + Y values, and as many
// more as `iterate` or `refine` needs.
const float* flow_of_pair(const Request& r, const Pyramid& pyramid, int64_t p, const float* expansions, float* scratch) {
    const int64_t n = r.X * r.Y;
    float *flow = scratch, *coarser = flow + 2 * n, *row = coarser + 2 * n, *rest = row + r.Y;
    for (int l = 0; l < r.n_levels; ++l) {
        const Level& level = r.levels[l];
        const int64_t size = int64_t(level.X) * level.Y;
        float* u = flow;
        if (l == 0) {
            std::memset(flow, 0, sizeof(float) * 2 * size);
        } else {
            const int64_t before = int64_t(r.levels[l - 1].X) * r.levels[l - 1].Y;
            std::swap(flow, coarser);
            u = flow;
            for (int c = 0; c < 2; ++c)
                resample(coarser + c * before, r.levels[l - 1].Y, level.X, level.Y, level.flow_x, level.flow_y, row, flow + c * size);
        }
        const float* first = expansions + r.pairs[2 * p] * pyramid.size + pyramid.start[l];
        const float* second = expansions + r.pairs[2 * p + 1] * pyramid.size + pyramid.start[l];
        for (int i = 0; i < r.iterations; ++i) iterate(first, second, level.X, level.Y, r.window, rest, u, u + size);
        if (l == r.n_levels - 1 && r.refine)
            return refine(first, second, level.X, level.Y, r.refine, rest, flow, coarser);
    }
    return flow;
}

void put(float v, float* out) { *out = v; }
void put(float v, uint16_t* out) { *out = float_to_half(v); }

// Copies the flow (2, X, Y) of one pair to its place in the result.
template <class T>
void write_flow(const Request& r, int64_t slice, int64_t p, const float* flow) {
    const int64_t n = 2 * r.X * r.Y;
    T* out = (T*)r.out + (slice / r.Z * r.P + p) * n * r.Z + slice % r.Z;
    for (int64_t i = 0; i < n; ++i) put(flow[i], out + i * r.Z);
}

VECTORISED void magnitudes(const float* u, const float* v, int64_t n, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = magnitude({u[i], v[i]});
}

// Row x of the mean over group g of a slice's magnitudes (P, X, Y); row: Y values.
void write_mean_row(const Request& r, int64_t slice, int64_t g, int64_t x, const float* moved, float* row) {
    std::memset(row, 0, sizeof(float) * r.Y);
    for (int k = r.begin[g]; k < r.begin[g + 1]; ++k)
        add_scaled(moved + (r.members[k] * r.X + x) * r.Y, r.shares[k], int(r.Y), row);
    float* out = (float*)r.out + ((slice / r.Z * r.G + g) * r.X + x) * r.Y * r.Z + slice % r.Z;
    for (int64_t y = 0; y < r.Y; ++y) out[y * r.Z] = row[y];
}

}  // namespace

// Returns DONE, NON_FINITE (a float frame holds NaN or infinity; `out` is then undefined) or NO_MEMORY.
extern "C" int cinema_fast_optical_flow(const Request* request) {
    const Request& r = *request;
    const Pyramid pyramid(r);
    const int threads = r.threads < 1 ? 1 : r.threads;
    // slices at a time: enough that all threads have work, and few enough that expansions stay in the cache
    const int64_t slices = r.B * r.Z, fewest = r.F < r.P ? r.F : r.P;
    int64_t group = (4 * threads + fewest - 1) / fewest;
    if (group > slices) group = slices;
    const int64_t frame_scratch = 2 * r.X * r.Y + r.Y + 3 * (r.Y + 2 * MAX_RADIUS);
    const int64_t of_iterate = iterate_scratch(r.Y, r.window), of_refine = r.refine ? COEFFICIENTS * r.X * r.Y + r.Y : 0;
    const int64_t pair_scratch = 4 * r.X * r.Y + r.Y + (of_iterate > of_refine ? of_iterate : of_refine);
    const int64_t scratch_size = frame_scratch > pair_scratch ? frame_scratch : pair_scratch;
    const int64_t n = r.X * r.Y;
    const Buffer expansions = allocate(group * r.F * pyramid.size), scratch = allocate(threads * scratch_size);
    const Buffer moved = allocate(r.G ? group * r.P * n : 0);  // magnitudes
    if (!expansions || !scratch || !moved) return NO_MEMORY;
    bool finite = true;
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        float* mine = scratch.get() + omp_get_thread_num() * scratch_size;
#else
        float* mine = scratch.get();
#endif
        for (int64_t from = 0; from < slices; from += group) {
            const int64_t count = slices - from < group ? slices - from : group;
#pragma omp for schedule(dynamic) reduction(&& : finite)
            for (int64_t i = 0; i < count * r.F; ++i)
                finite = expand_frame(r, pyramid, from + i / r.F, i % r.F, mine, expansions.get() + i * pyramid.size) && finite;
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < count * r.P; ++i) {
                const int64_t slice = i / r.P, p = i % r.P;
                const float* flow = flow_of_pair(r, pyramid, p, expansions.get() + slice * r.F * pyramid.size, mine);
                if (r.G) magnitudes(flow, flow + n, n, moved.get() + i * n);
                else if (r.out_size == 2) write_flow<uint16_t>(r, from + slice, p, flow);
                else write_flow<float>(r, from + slice, p, flow);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count * r.G * r.X; ++i) {
                const int64_t x = i % r.X, g = i / r.X % r.G, slice = i / r.X / r.G;
                write_mean_row(r, from + slice, g, x, moved.get() + slice * r.P * n, mine);
            }
        }
    }
    return finite ? DONE : NON_FINITE;
}

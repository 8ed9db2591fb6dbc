// Stored frames moved, scaled and changed in brightness on the CPU, as a plain C library: threads over samples, or over
// rows of those that are left, vectors along rows. kernels/augment_images.py says what it computes.
//
// A sample takes two passes. The first makes moved rows and the extrema of each; the second scales, raises to a power
// and adds noise, in blocks of calls of the generator. Neither rows nor blocks depend on the number of threads or on
// the batch, hence neither does any bit of the result. An image that nothing moves is read twice and written once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

// The widest vectors that the machine has, chosen when the library is loaded; it runs on any x86-64.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif
#define INLINE inline __attribute__((always_inline))

struct Request {
    const uint8_t* frames;                // (B, T, X, Y, Z); T = 1 but for clips, Z = 1 but for volumes
    float* out;                           // the same shape
    const int64_t* extent;                // (B, 4)
    const double *zoom, *angle, *shift;   // (B,), (B,), (B, 2); null where nothing is zoomed, and so on
    const uint8_t* flip;                  // (B, 2)
    const double *gamma, *noise;          // (B,)
    const int64_t* noise_key;             // (B,)
    int64_t B, T, X, Y, Z;
    int32_t maps, threads;                // maps: interpolated linearly, and not scaled
};

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float FLAT = 0x1p-10f;          // as in kernels/augment_torch.py
constexpr double CUBIC = -0.75;           // as there
constexpr double GRID = 0x1.8p28;         // added and taken away again: rounds to multiples of 2^-24
constexpr int CALLS = 512;                // of the generator in a block
constexpr int PER_CALL = 8;               // normal values of each
constexpr int LINE = 16;                  // slices that fit one vector

typedef float Vector __attribute__((vector_size(64), aligned(4)));
typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1)));

using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

enum Way { AS_STORED, SEPARABLE, TURNED };

// What is done to one sample: tables of its axes, and where in a row its pixels are.
struct Plan {
    Way way;
    int64_t extent[4];                    // within the frames
    int taps;                             // of a separable axis in plane
    int reach;                            // slices that mix along z: from z - reach to z + reach; -1 where none do
    Ints x_from, y_from;                  // (taps, X), (taps, Y)
    Floats x_weight, y_weight, z_weight;  // (taps, X), (taps, Y), (2 reach + 1, Z)
    Doubles along_x[2], along_y[2];       // of the turned plane: at[axis] = along_x[axis][x] + along_y[axis][y]
    Floats outside;                       // (Y, Z): infinity in padding, else 0
    Floats low, high;                     // (T, X) extrema of each row

    explicit Plan(const Request& r)
        : x_from(4 * r.X), y_from(4 * r.Y), x_weight(4 * r.X), y_weight(4 * r.Y), z_weight((2 * r.Z + 1) * r.Z),
          along_x{Doubles(r.X), Doubles(r.X)}, along_y{Doubles(r.Y), Doubles(r.Y)}, outside(r.Y * r.Z), low(r.T * r.X),
          high(r.T * r.X) {}
};

// What a thread needs for a row.
struct Scratch {
    Floats mixed, lines;                  // (Y, Z) each; `lines` with Z zeros more on either side
    Ints x_from[2], y_from[2];            // (Y,) the neighbours of a turned row's pixels
    Floats weight[4];                     // (Y,) of the neighbours (0, 0), (0, 1), (1, 0), (1, 1)

    explicit Scratch(const Request& r)
        : mixed(r.Y * r.Z), lines((r.Y + 2) * r.Z), x_from{Ints(r.Y), Ints(r.Y)}, y_from{Ints(r.Y), Ints(r.Y)},
          weight{Floats(r.Y), Floats(r.Y), Floats(r.Y), Floats(r.Y)} {}
};

double tent(double d, bool cubic) {
    if (!cubic) return d < 1 ? 1 - d : 0;
    if (d <= 1) return ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1;
    return d < 2 ? ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC : 0;
}

// Where in the input output pixel i of an axis lies; what is far outside lies just outside, where all weights are 0.
double source(int64_t i, double zoom, int64_t extent) {
    const double centre = (extent - 1) / 2.0, at = centre + (i - centre) / zoom;
    return at > -3 ? std::min(at, extent + 2.0) : -3;  // -3 for NaN, too
}

// `taps` neighbours of each pixel of an axis and their weights, 0 outside the extent.
void axis_taps(int64_t size, int64_t extent, double zoom, int taps, int32_t* from, float* weight) {
    for (int64_t i = 0; i < size; ++i) {
        const double at = source(i, zoom, extent);
        const int64_t first = int64_t(std::floor(at)) - taps / 2 + 1;
        for (int k = 0; k < taps; ++k) {
            const int64_t pixel = first + k;
            const bool inside = i < extent && pixel >= 0 && pixel < extent;
            from[k * size + i] = int32_t(std::clamp<int64_t>(pixel, 0, extent - 1));
            weight[k * size + i] = inside ? float(tent(std::abs(at - double(pixel)), taps == 4)) : 0;
        }
    }
}

int axis_reach(int64_t extent, double zoom) {
    int64_t reach = 0;
    for (int64_t z = 0; z < extent; ++z) {
        const int64_t low = int64_t(std::floor(source(z, zoom, extent)));
        for (int64_t pixel : {low, low + 1})
            if (pixel >= 0 && pixel < extent) reach = std::max(reach, std::abs(pixel - z));
    }
    return int(reach);
}

void fill(const Request& r, int64_t b, Plan& p) {
    const int64_t size[4] = {r.T, r.X, r.Y, r.Z};
    for (int axis = 0; axis < 4; ++axis) p.extent[axis] = std::clamp<int64_t>(r.extent[4 * b + axis], 0, size[axis]);
    const double zoom = r.zoom ? r.zoom[b] : 1, angle = r.angle ? r.angle[b] : 0;
    const double signed_zoom[2] = {r.flip && r.flip[2 * b] ? -zoom : zoom, r.flip && r.flip[2 * b + 1] ? -zoom : zoom};
    const double shift[2] = {r.shift ? r.shift[2 * b] : 0, r.shift ? r.shift[2 * b + 1] : 0};
    const int64_t *extent = p.extent, inside = extent[0] * extent[1] * extent[2] * extent[3];
    for (int64_t y = 0; y < r.Y; ++y)
        for (int64_t z = 0; z < r.Z; ++z) p.outside[y * r.Z + z] = y < extent[2] && z < extent[3] ? 0 : INF;
    const bool still = signed_zoom[0] == 1 && signed_zoom[1] == 1 && angle == 0 && shift[0] == 0 && shift[1] == 0;
    p.way = still || !inside ? AS_STORED : r.angle || r.shift ? TURNED : SEPARABLE;
    p.reach = -1;
    if (p.way == AS_STORED) return;
    if (r.Z > 1 && zoom != 1) {
        p.reach = axis_reach(extent[3], zoom);
        for (int64_t z = 0; z < extent[3]; ++z) {
            const double at = source(z, zoom, extent[3]);
            for (int64_t from = int64_t(std::floor(at)), k = 0; k < 2; ++k, ++from)
                if (from >= 0 && from < extent[3])
                    p.z_weight[(from - z + p.reach) * r.Z + z] = float(tent(std::abs(at - double(from)), false));
        }
    }
    if (p.way == SEPARABLE) {
        p.taps = r.Z == 1 && !r.maps ? 4 : 2;
        axis_taps(r.X, extent[1], signed_zoom[0], p.taps, p.x_from.data(), p.x_weight.data());
        axis_taps(r.Y, extent[2], signed_zoom[1], p.taps, p.y_from.data(), p.y_weight.data());
        return;
    }
    const double centre[2] = {(extent[1] - 1) / 2.0, (extent[2] - 1) / 2.0};
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double of_x[2] = {cosine / signed_zoom[0], -sine / signed_zoom[1]};
    const double of_y[2] = {sine / signed_zoom[0], cosine / signed_zoom[1]};
    for (int axis = 0; axis < 2; ++axis) {
        for (int64_t x = 0; x < r.X; ++x) p.along_x[axis][x] = of_x[axis] * (x - centre[0] - shift[0]) + centre[axis];
        for (int64_t y = 0; y < r.Y; ++y) p.along_y[axis][y] = of_y[axis] * (y - centre[1] - shift[1]);
    }
}

// A row as the weighted sum of two, or of four, of the frame.
VECTORISED void mix_2(const uint8_t* const* in, const float* w, int64_t n, float* out) {
    const uint8_t *a = in[0], *b = in[1];
    const float wa = w[0], wb = w[1];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = wa * a[i] + wb * b[i];
}

VECTORISED void mix_4(const uint8_t* const* in, const float* w, int64_t n, float* out) {
    const uint8_t *a = in[0], *b = in[1], *c = in[2], *d = in[3];
    const float wa = w[0], wb = w[1], wc = w[2], wd = w[3];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
}

// Each pixel of a row as the weighted sum of two, or of four, of another row.
VECTORISED void mix_along(const float* in, const int32_t* from, const float* weight, int taps, int64_t n, float* out) {
    if (taps == 4) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i)
            out[i] = weight[i] * in[from[i]] + weight[n + i] * in[from[n + i]] +
                     weight[2 * n + i] * in[from[2 * n + i]] + weight[3 * n + i] * in[from[3 * n + i]];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * in[from[i]] + weight[n + i] * in[from[n + i]];
    }
}

// The same of two neighbours for lines of Z slices.
VECTORISED void mix_lines(const float* in, const int32_t* from, const float* weight, int64_t n, int64_t Z, float* out) {
    for (int64_t y = 0; y < n; ++y) {
        const float *a = in + from[y] * Z, *b = in + from[n + y] * Z;
        const float wa = weight[y], wb = weight[n + y];
        float* to = out + y * Z;
        int64_t z = 0;
        for (; z + LINE <= Z; z += LINE)
            *(Vector*)(to + z) = wa * *(const Vector*)(a + z) + wb * *(const Vector*)(b + z);
        for (; z < Z; ++z) to[z] = wa * a[z] + wb * b[z];
    }
}

// Along z: neighbours beyond the ends of a line are those of another line, with a weight of 0.
VECTORISED void mix_slices(const float* in, const float* weight, int reach, int64_t n, int64_t Z, float* out) {
    for (int64_t y = 0; y < n; ++y) {
        const float* line = in + y * Z;
        float* to = out + y * Z;
        int64_t z = 0;
        for (; z + LINE <= Z; z += LINE) {
            Vector sum = {};
            for (int d = -reach; d <= reach; ++d)
                sum += *(const Vector*)(weight + (d + reach) * Z + z) * *(const Vector*)(line + z + d);
            *(Vector*)(to + z) = sum;
        }
        for (; z < Z; ++z) {
            float sum = 0;
            for (int d = -reach; d <= reach; ++d) sum += weight[(d + reach) * Z + z] * line[z + d];
            to[z] = sum;
        }
    }
}

// Neighbours and weights of a turned row. Positions are multiples of 2^-24, so that a quarter turn falls onto pixels;
// between -1 and the extent, where all weights are 0.
VECTORISED void turned_taps(
    double x, double y, const double* along_x, const double* along_y, int64_t Y, int32_t extent_x, int32_t extent_y,
    Scratch& s) {
    int32_t *x0 = s.x_from[0].data(), *x1 = s.x_from[1].data(), *y0 = s.y_from[0].data(), *y1 = s.y_from[1].data();
    float *w00 = s.weight[0].data(), *w01 = s.weight[1].data(), *w10 = s.weight[2].data(), *w11 = s.weight[3].data();
    const double end_x = extent_x, end_y = extent_y;
#pragma omp simd
    for (int64_t i = 0; i < Y; ++i) {
        double at_x = x + along_x[i], at_y = y + along_y[i];
        at_x = at_x > -1 ? at_x : -1, at_y = at_y > -1 ? at_y : -1;
        at_x = at_x < end_x ? at_x : end_x, at_y = at_y < end_y ? at_y : end_y;
        at_x = (at_x + GRID) - GRID, at_y = (at_y + GRID) - GRID;
        const int32_t low_x = int32_t(at_x + 1) - 1, low_y = int32_t(at_y + 1) - 1;
        const float part_x = float(at_x - low_x), part_y = float(at_y - low_y);
        const float wx0 = low_x >= 0 && low_x < extent_x ? 1 - part_x : 0, wx1 = low_x + 1 < extent_x ? part_x : 0;
        const float wy0 = low_y >= 0 && low_y < extent_y ? 1 - part_y : 0, wy1 = low_y + 1 < extent_y ? part_y : 0;
        x0[i] = low_x < 0 ? 0 : low_x < extent_x ? low_x : extent_x - 1;
        y0[i] = low_y < 0 ? 0 : low_y < extent_y ? low_y : extent_y - 1;
        x1[i] = low_x + 1 < extent_x ? low_x + 1 : extent_x - 1;
        y1[i] = low_y + 1 < extent_y ? low_y + 1 : extent_y - 1;
        w00[i] = wx0 * wy0, w01[i] = wx0 * wy1, w10[i] = wx1 * wy0, w11[i] = wx1 * wy1;
    }
}

INLINE Vector as_floats(const uint8_t* in) { return __builtin_convertvector(*(const Bytes*)in, Vector); }

VECTORISED void mix_turned(const uint8_t* frame, const Scratch& s, int64_t n, int64_t Y, int64_t Z, float* out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t *x0 = frame + s.x_from[0][i] * Y * Z, *x1 = frame + s.x_from[1][i] * Y * Z;
        const int64_t y0 = s.y_from[0][i] * Z, y1 = s.y_from[1][i] * Z;
        const float w00 = s.weight[0][i], w01 = s.weight[1][i], w10 = s.weight[2][i], w11 = s.weight[3][i];
        float* to = out + i * Z;
        int64_t z = 0;
        for (; z + LINE <= Z; z += LINE)
            *(Vector*)(to + z) = w00 * as_floats(x0 + y0 + z) + w01 * as_floats(x0 + y1 + z) +
                                 w10 * as_floats(x1 + y0 + z) + w11 * as_floats(x1 + y1 + z);
        for (; z < Z; ++z) to[z] = w00 * x0[y0 + z] + w01 * x0[y1 + z] + w10 * x1[y0 + z] + w11 * x1[y1 + z];
    }
}

VECTORISED void to_float(const uint8_t* in, int64_t n, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = in[i];
}

INLINE float load(const float* in) { return *in; }
INLINE float load(const uint8_t* in) { return *in; }
INLINE Vector load_vector(const float* in) { return *(const Vector*)in; }
INLINE Vector load_vector(const uint8_t* in) { return as_floats(in); }

template <class T>
INLINE void extrema_of(const T* in, const float* outside, int64_t n, float* low, float* high) {
    Vector lows = Vector{} + INF, highs = Vector{} - INF;
    int64_t i = 0;
    for (; i + LINE <= n; i += LINE) {
        const Vector v = load_vector(in + i), far = *(const Vector*)(outside + i), a = v + far, b = v - far;
        lows = a < lows ? a : lows, highs = b > highs ? b : highs;
    }
    float l = INF, h = -INF;
    for (; i < n; ++i) l = std::min(l, load(in + i) + outside[i]), h = std::max(h, load(in + i) - outside[i]);
    for (int k = 0; k < LINE; ++k) l = std::min(l, lows[k]), h = std::max(h, highs[k]);
    *low = l, *high = h;
}

VECTORISED void extrema(const float* in, const float* outside, int64_t n, float* low, float* high) {
    extrema_of(in, outside, n, low, high);
}

VECTORISED void extrema_stored(const uint8_t* in, const float* outside, int64_t n, float* low, float* high) {
    extrema_of(in, outside, n, low, high);
}

// The first pass over row x of frame t: moved, and its extrema.
void move_row(const Request& r, Plan& p, int64_t b, int64_t t, int64_t x, Scratch& s) {
    const int64_t n = r.Y * r.Z, index = (b * r.T + t) * r.X + x;
    const uint8_t *frame = r.frames + (b * r.T + t) * r.X * n, *stored = frame + x * n;
    float *out = r.out + index * n, *low = &p.low[t * r.X + x], *high = &p.high[t * r.X + x];
    *low = INF, *high = -INF;
    if (t >= p.extent[0] || x >= p.extent[1]) return void(std::memset(out, 0, n * sizeof(float)));
    if (p.way == AS_STORED)
        return r.maps ? to_float(stored, n, out) : extrema_stored(stored, p.outside.data(), n, low, high);
    float* lines = p.reach < 0 ? out : s.lines.data() + r.Z;
    if (p.way == TURNED) {
        const double *along_x = p.along_y[0].data(), *along_y = p.along_y[1].data();
        turned_taps(p.along_x[0][x], p.along_x[1][x], along_x, along_y, r.Y, p.extent[1], p.extent[2], s);
        mix_turned(frame, s, p.extent[2], r.Y, r.Z, lines);
        std::memset(lines + p.extent[2] * r.Z, 0, (r.Y - p.extent[2]) * r.Z * sizeof(float));
    } else {
        const uint8_t* rows[4];
        float weight[4];
        for (int k = 0; k < p.taps; ++k)
            rows[k] = frame + p.x_from[k * r.X + x] * n, weight[k] = p.x_weight[k * r.X + x];
        (p.taps == 4 ? mix_4 : mix_2)(rows, weight, n, s.mixed.data());
        if (r.Z == 1)
            mix_along(s.mixed.data(), p.y_from.data(), p.y_weight.data(), p.taps, r.Y, lines);
        else
            mix_lines(s.mixed.data(), p.y_from.data(), p.y_weight.data(), r.Y, r.Z, lines);
    }
    if (p.reach >= 0) mix_slices(lines, p.z_weight.data(), p.reach, r.Y, r.Z, out);
    if (!r.maps) extrema(out, p.outside.data(), n, low, high);
}

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

// Philox4x32-10 as in kernels/philox.py: words[w][i] of call first + i.
VECTORISED void philox(uint32_t key_0, uint32_t key_1, uint32_t first, uint32_t (*words)[CALLS]) {
#pragma omp simd
    for (int i = 0; i < CALLS; ++i) {
        uint32_t c0 = first + i, c1 = 0, c2 = 0, c3 = 0, k0 = key_0, k1 = key_1;
#pragma GCC unroll 10
        for (int round = 0; round < 10; ++round) {
            const uint64_t a = uint64_t(c0) * 0xD2511F53u, b = uint64_t(c2) * 0xCD9E8D57u;
            c0 = uint32_t(b >> 32) ^ c1 ^ k0, c1 = uint32_t(b), c2 = uint32_t(a >> 32) ^ c3 ^ k1, c3 = uint32_t(a);
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        words[0][i] = c0, words[1][i] = c1, words[2][i] = c2, words[3][i] = c3;
    }
}

// Box and Muller's pair of each word: radius of its high half, angle of its low one, of which two bits are the quarter.
VECTORISED void normal(const uint32_t* words, int64_t n, float* of_cos, float* of_sin) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const float radius = std::sqrt(-1.3862943611198906f * log_2((float(int32_t(words[i] >> 16)) + 0.5f) * 0x1p-16f));
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
        float v = (load(in + i) - f.low) / f.spread;
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
INLINE void finish_any(const T* in, const float* outside, const float* drawn, const Brightness& f, int64_t n, float* out) {
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
    float high = -INF;
    for (int64_t row = 0; row < r.T * r.X; ++row) f.low = std::min(f.low, p.low[row]), high = std::max(high, p.high[row]);
    f.spread = high - f.low < FLAT ? INF : high - f.low;
    f.of_black = std::pow(0.0f, f.gamma);
    uint32_t words[4][CALLS];
    float drawn[PER_CALL][CALLS];
    if (f.noise != 0) {
        const uint64_t key = r.noise_key[b];
        philox(uint32_t(key), uint32_t(key >> 32), uint32_t(first), words);
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
    const int64_t rows = r.T * r.X, blocks = r.maps ? 0 : (calls_of(r) + CALLS - 1) / CALLS;
    const int64_t alone = r.B - r.B % r.threads;  // samples of which a thread makes one by itself; the rest they share
    try {
        std::vector<Plan> plans(r.B, Plan(r));
        std::vector<Scratch> scratch(r.threads, Scratch(r));
#pragma omp parallel num_threads(r.threads)
        {
            Scratch& mine = scratch[thread()];
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t b = 0; b < alone; ++b) {
                fill(r, b, plans[b]);
                for (int64_t row = 0; row < rows; ++row) move_row(r, plans[b], b, row / r.X, row % r.X, mine);
                for (int64_t block = 0; block < blocks; ++block) brighten(r, plans[b], b, block);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t b = alone; b < r.B; ++b) fill(r, b, plans[b]);
#pragma omp for schedule(dynamic, 4)
            for (int64_t i = 0; i < (r.B - alone) * rows; ++i)
                move_row(r, plans[alone + i / rows], alone + i / rows, i % rows / r.X, i % r.X, mine);
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < (r.B - alone) * blocks; ++i)
                brighten(r, plans[alone + i / blocks], alone + i / blocks, i % blocks);
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

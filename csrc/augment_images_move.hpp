// The first pass of augment_images_cpu.cpp: prepares what is done to a sample, and moves its rows.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "vectorised.hpp"

struct Request {
    const uint8_t* frames;                // (B, T, X, Y, Z); T = 1 but for clips, Z = 1 but for volumes
    float* out;                           // the same shape
    const int64_t* extent;                // (B, 4)
    const double *zoom, *angle, *shift;   // (B,), (B,), (B, 2); null where nothing is zoomed, and so on
    const uint8_t* flip;                  // (B, 2)
    const double *gamma, *noise;          // (B,)
    const int64_t* noise_key;             // (B,)
    int64_t B, T, X, Y, Z;
    int32_t volumes, maps, threads;       // volumes: linear, even of one slice; maps: linear, not scaled
};

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr double CUBIC = -0.75;           // as in kernels/augment_images/torch_form.py
constexpr double GRID = 0x1.8p28;         // added and subtracted again: rounds to multiples of 2^-24
constexpr int LINE = 16;                  // slices that fit one vector

typedef float Vector __attribute__((vector_size(64), aligned(4)));

using Bytes = std::vector<uint8_t>;
using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

enum Way { AS_STORED, SEPARABLE, TURNED };

// What is done to one sample: tables of its axes, and which pixels of a row are padding.
struct Plan {
    Way way = AS_STORED;
    int64_t extent[4] = {};               // within the frames
    int taps = 0;                         // of a separable axis in plane
    int reach = -1;                       // slices z - reach .. z + reach are mixed along z; -1: none are
    Ints x_from, y_from;                  // (taps, X), (taps, Y)
    Floats x_weight, y_weight, z_weight;  // (taps, X), (taps, Y), (2 reach + 1, Z)
    Doubles along_x[2], along_y[2];       // rotated plane: position at[axis] = along_x[axis][x] + along_y[axis][y]
    Floats outside;                       // (Y, Z): infinity in padding, else 0
    Bytes padding;                        // (Y, Z): 255 there
    Floats low, high;                     // (X,) extrema of the rows

    explicit Plan(const Request& r)
        : x_from(4 * r.X), y_from(4 * r.Y), x_weight(4 * r.X), y_weight(4 * r.Y), z_weight((2 * r.Z + 1) * r.Z),
          along_x{Doubles(r.X), Doubles(r.X)}, along_y{Doubles(r.Y), Doubles(r.Y)}, outside(r.Y * r.Z),
          padding(r.Y * r.Z), low(r.X), high(r.X) {}
};

// Scratch of a thread for a row.
struct Scratch {
    Floats mixed, lines;                  // (Y, Z) each; `lines` with Z zeros more on either side
    Ints from[4];                         // (Y,) each: the four neighbours of a rotated row's pixels
    Floats weight[4];                     // (Y,) of each

    explicit Scratch(const Request& r)
        : mixed(r.Y * r.Z), lines((r.Y + 2) * r.Z), from{Ints(r.Y), Ints(r.Y), Ints(r.Y), Ints(r.Y)},
          weight{Floats(r.Y), Floats(r.Y), Floats(r.Y), Floats(r.Y)} {}
};

double tent(double d, bool cubic) {
    if (!cubic) return d < 1 ? 1 - d : 0;
    if (d <= 1) return ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1;
    return d < 2 ? ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC : 0;
}

// Position in the input of output pixel i of an axis. Far outside it is moved to just outside, where all weights are 0.
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
    const int64_t *extent = p.extent, pixels = extent[0] * extent[1] * extent[2] * extent[3];
    for (int64_t y = 0; y < r.Y; ++y)
        for (int64_t z = 0; z < r.Z; ++z) {
            const bool inside = y < extent[2] && z < extent[3];
            p.outside[y * r.Z + z] = inside ? 0 : INF, p.padding[y * r.Z + z] = inside ? 0 : 255;
        }
    const bool still = signed_zoom[0] == 1 && signed_zoom[1] == 1 && angle == 0 && shift[0] == 0 && shift[1] == 0;
    p.way = still || !pixels ? AS_STORED : r.angle || r.shift ? TURNED : SEPARABLE;
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
        p.taps = r.volumes || r.maps ? 2 : 4;
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

template <int REACH>
INLINE void mix_slices_of(const float* in, const float* weight, int any, int64_t n, int64_t Z, float* out) {
    const int reach = REACH ? REACH : any;
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

// Along z. Neighbours beyond the ends of a line belong to another line; their weight is 0.
VECTORISED void mix_slices(const float* in, const float* weight, int reach, int64_t n, int64_t Z, float* out) {
    if (reach == 1)
        mix_slices_of<1>(in, weight, reach, n, Z, out);
    else
        mix_slices_of<0>(in, weight, reach, n, Z, out);
}

// Neighbours and weights of a rotated row. Positions are multiples of 2^-24, so that a quarter turn falls onto pixels,
// and are clamped to -1 and the extent, where all weights are 0.
VECTORISED void turned_taps(
    double x, double y, const double* along_x, const double* along_y, int64_t Y, int32_t extent_x, int32_t extent_y,
    Scratch& s) {
    int32_t *f00 = s.from[0].data(), *f01 = s.from[1].data(), *f10 = s.from[2].data(), *f11 = s.from[3].data();
    const int32_t size_y = int32_t(Y);
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
        const int32_t x0 = (low_x < 0 ? 0 : low_x < extent_x ? low_x : extent_x - 1) * size_y;
        const int32_t x1 = (low_x + 1 < extent_x ? low_x + 1 : extent_x - 1) * size_y;
        const int32_t y0 = low_y < 0 ? 0 : low_y < extent_y ? low_y : extent_y - 1;
        const int32_t y1 = low_y + 1 < extent_y ? low_y + 1 : extent_y - 1;
        f00[i] = x0 + y0, f01[i] = x0 + y1, f10[i] = x1 + y0, f11[i] = x1 + y1;
        w00[i] = wx0 * wy0, w01[i] = wx0 * wy1, w10[i] = wx1 * wy0, w11[i] = wx1 * wy1;
    }
}

VECTORISED void mix_turned(const uint8_t* frame, const Scratch& s, int64_t n, int64_t Z, float* out) {
    const int32_t *f00 = s.from[0].data(), *f01 = s.from[1].data(), *f10 = s.from[2].data(), *f11 = s.from[3].data();
    const float *w00 = s.weight[0].data(), *w01 = s.weight[1].data(), *w10 = s.weight[2].data(),
                *w11 = s.weight[3].data();
    if (Z == 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i)
            out[i] = w00[i] * frame[f00[i]] + w01[i] * frame[f01[i]] + w10[i] * frame[f10[i]] + w11[i] * frame[f11[i]];
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t *a = frame + f00[i] * Z, *b = frame + f01[i] * Z;
        const uint8_t *c = frame + f10[i] * Z, *d = frame + f11[i] * Z;
        const float wa = w00[i], wb = w01[i], wc = w10[i], wd = w11[i];
        float* to = out + i * Z;
        int64_t z = 0;
        for (; z + LINE <= Z; z += LINE) {
#pragma omp simd
            for (int k = 0; k < LINE; ++k)
                to[z + k] = wa * a[z + k] + wb * b[z + k] + wc * c[z + k] + wd * d[z + k];
        }
        for (; z < Z; ++z) to[z] = wa * a[z] + wb * b[z] + wc * c[z] + wd * d[z];
    }
}

VECTORISED void to_float(const uint8_t* in, int64_t n, float* out) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = in[i];
}

VECTORISED void extrema(const float* in, const float* outside, int64_t n, float* low, float* high) {
    alignas(64) float lows[LINE], highs[LINE];
    std::fill_n(lows, LINE, *low), std::fill_n(highs, LINE, *high);
    int64_t i = 0;
    for (; i + LINE <= n; i += LINE) {
#pragma omp simd
        for (int k = 0; k < LINE; ++k) {
            const float a = in[i + k] + outside[i + k], b = in[i + k] - outside[i + k];
            lows[k] = a < lows[k] ? a : lows[k], highs[k] = b > highs[k] ? b : highs[k];
        }
    }
    for (; i < n; ++i) *low = std::min(*low, in[i] + outside[i]), *high = std::max(*high, in[i] - outside[i]);
    for (int k = 0; k < LINE; ++k) *low = std::min(*low, lows[k]), *high = std::max(*high, highs[k]);
}

VECTORISED void extrema_stored(const uint8_t* in, const uint8_t* padding, int64_t n, float* low, float* high) {
    uint8_t l = 255, h = 0;
#pragma omp simd reduction(min : l) reduction(max : h)
    for (int64_t i = 0; i < n; ++i) {
        const uint8_t a = in[i] | padding[i], b = in[i] & ~padding[i];
        l = a < l ? a : l, h = b > h ? b : h;
    }
    *low = std::min(*low, float(l)), *high = std::max(*high, float(h));
}

// Moves row x of one frame.
void move_row(const Request& r, const Plan& p, const uint8_t* frame, int64_t x, Scratch& s, float* out) {
    const int64_t n = r.Y * r.Z;
    float* lines = p.reach < 0 ? out : s.lines.data() + r.Z;
    if (p.way == TURNED) {
        mix_turned(frame, s, p.extent[2], r.Z, lines);
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
}

// The first pass over row x of all frames, and its extrema.
void move_rows(const Request& r, Plan& p, int64_t b, int64_t x, Scratch& s) {
    const int64_t n = r.Y * r.Z;
    float low = INF, high = -INF;
    if (p.way == TURNED && x < p.extent[1]) {
        const double *along_x = p.along_y[0].data(), *along_y = p.along_y[1].data();
        turned_taps(p.along_x[0][x], p.along_x[1][x], along_x, along_y, r.Y, p.extent[1], p.extent[2], s);
    }
    for (int64_t t = 0; t < r.T; ++t) {
        const int64_t first = (b * r.T + t) * r.X * n;
        const uint8_t* frame = r.frames + first;
        float* out = r.out + first + x * n;
        if (t >= p.extent[0] || x >= p.extent[1])
            std::memset(out, 0, n * sizeof(float));
        else if (p.way != AS_STORED) {
            move_row(r, p, frame, x, s, out);
            if (!r.maps) extrema(out, p.outside.data(), n, &low, &high);
        } else if (r.maps)
            to_float(frame + x * n, n, out);
        else
            extrema_stored(frame + x * n, p.padding.data(), n, &low, &high);
    }
    p.low[x] = low, p.high[x] = high;
}

}  // namespace

// The arithmetic of Farneback's flow for one pixel, shared by the CUDA kernels and the CPU driver.
//
// Axis x is the first axis of a plane (X, Y), y the second and contiguous one. A frame's polynomial expansion
// f(p) ~ p'A p + b'p + c is five planes one after another: b_x, b_y, A_xx, A_yy, 2 A_xy. Borders repeat the edge.
#pragma once

#if !defined(__CUDACC__)
#include <cmath>
#endif

#if defined(__CUDACC__)
#define FLOW_INLINE static __host__ __device__ __forceinline__
#define FLOW_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define FLOW_INLINE static inline __attribute__((always_inline))
#define FLOW_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define FLOW_INLINE static inline __attribute__((always_inline))
#define FLOW_UNROLL _Pragma("GCC unroll 8")
#else
#define FLOW_INLINE static inline
#define FLOW_UNROLL
#endif

namespace flow {

constexpr int COEFFICIENTS = 5;  // of an expansion, and sums of the normal equations
constexpr int STRIP = 16;        // rows after which a running sum starts anew, so that rounding cannot pile up
constexpr int MEAN_WIDTH = 32;   // pixels of a row that a block of flow_mean_magnitude makes
constexpr int MEAN_PAIRS = 4;    // pairs that it works on at a time
constexpr int REGION_X = 48, REGION_Y = 64, REGION_ROWS = 16;  // of flow_refine: pixels of a block, rows at a time
constexpr int MAX_RADIUS = 7;
constexpr float SMOOTHNESS = 50.f;  // s of the refinement [grey values^2 / pixel^4]
constexpr float SPREAD = 0.98f;     // largest eigenvalue of a plain sweep that Chebyshev's weights reckon with
constexpr float DAMPING = 1e-3f;  // of the determinant, as OpenCV has it: grey values of 0..255 are meant

// One-dimensional filters of the expansion: averaging g, first derivative d (odd) and second derivative q.
struct Filters {
    float g[MAX_RADIUS + 1], d[MAX_RADIUS + 1], q[MAX_RADIUS + 1];
};

struct Moments {
    float g, d, q;
};

struct Expansion {
    float bx, by, axx, ayy, axy;
};

struct Sums {
    float gxx, gxy, gyy, hx, hy;
};

struct Motion {
    float u, v;
};

// One pixel of the refinement: m = P (sum of the four neighbours' m) + q, P symmetric.
struct Coupling {
    float pxx, pxy, pyy, qx, qy;
};

FLOW_INLINE int min(int a, int b) { return a < b ? a : b; }
FLOW_INLINE int max(int a, int b) { return a > b ? a : b; }
FLOW_INLINE float between(float v, float low, float high) {  // low for NaN
    v = v > low ? v : low;
    return v < high ? v : high;
}
FLOW_INLINE int clamp(int i, int n) { return i < 0 ? 0 : i >= n ? n - 1 : i; }

// The filters along x at row x of one column of a plane.
template <int RADIUS>
FLOW_INLINE Moments filter_column(const float* plane, int x, int y, int X, int Y, const Filters& f) {
    const float centre = plane[x * Y + y];
    Moments out = {f.g[0] * centre, 0.f, f.q[0] * centre};
    FLOW_UNROLL
    for (int k = 1; k <= RADIUS; ++k) {
        const float before = plane[clamp(x - k, X) * Y + y], after = plane[clamp(x + k, X) * Y + y];
        out.g += f.g[k] * (before + after);
        out.d += f.d[k] * (after - before);
        out.q += f.q[k] * (before + after);
    }
    return out;
}

// The filters along y; g, d and q point to filtered columns that go on for RADIUS on either side.
template <int RADIUS>
FLOW_INLINE Expansion filter_row(const float* g, const float* d, const float* q, const Filters& f) {
    Expansion out = {f.g[0] * d[0], 0.f, f.g[0] * q[0], f.q[0] * g[0], 0.f};
    FLOW_UNROLL
    for (int k = 1; k <= RADIUS; ++k) {
        const float sum = g[k] + g[-k];
        out.bx += f.g[k] * (d[k] + d[-k]);
        out.by += f.d[k] * (g[k] - g[-k]);
        out.axx += f.g[k] * (q[k] + q[-k]);
        out.ayy += f.q[k] * sum;
        out.axy += f.d[k] * (d[k] - d[-k]);
    }
    return out;
}

// Confidence of a pixel near the border, along one axis; OpenCV's values.
FLOW_INLINE float border_weight(int i, int n) {
    const int after = n - 1 - i;
    const float low = i < 2 ? 0.14f : i < 5 ? 0.4472f : 1.f;
    const float high = after < 2 ? 0.14f : after < 5 ? 0.4472f : 1.f;
    return low * high;
}

// G = A'A and h = A'(db + A m), the pixel's part of the equations for the motion, linearised about m = (u, v).
// A is the mean of the first frame's at the pixel and the second's where m leads, 2 db the difference of their b.
// Where m leads out of the frame, the second frame is taken to be flat with the first one's A.
FLOW_INLINE Sums normal_equations(
    const float* first, const float* second, int x, int y, int X, int Y, float u, float v, float weight) {
    const int plane = X * Y, here = x * Y + y;
    const float to_x = float(x) + u, to_y = float(y) + v;
    // Numbers instead of branches, which would keep the CPU's loop over y from being vectorised. `inside` is false for
    // NaN; outside, the second frame counts for nothing and the first one's A twice.
    const bool inside = (to_x >= 0.f) & (to_y >= 0.f) & (to_x <= float(X - 1)) & (to_y <= float(Y - 1));
    const float second_share = inside ? 1.f : 0.f, first_share = 2.f - second_share;
    const float sx = between(to_x, 0.f, float(X - 1)), sy = between(to_y, 0.f, float(Y - 1));
    const int x0 = min(int(sx), X > 1 ? X - 2 : 0), y0 = min(int(sy), Y > 1 ? Y - 2 : 0);
    const int at = x0 * Y + y0, down = X > 1 ? Y : 0, right = Y > 1 ? 1 : 0;
    const float ax = sx - float(x0), ay = sy - float(y0), ux = second_share * (1.f - ax), vx = second_share * ax;
    const float w00 = ux * (1.f - ay), w01 = ux * ay, w10 = vx * (1.f - ay), w11 = vx * ay;
    const auto moved = [&](int k) {  // coefficient k of the second frame's expansion
        const float* p = second + k * plane;
        return w00 * p[at] + w01 * p[at + right] + w10 * p[at + down] + w11 * p[at + down + right];
    };
    const float a = 0.5f * weight * (first_share * first[2 * plane + here] + moved(2));
    const float c = 0.5f * weight * (first_share * first[3 * plane + here] + moved(3));
    const float b = 0.25f * weight * (first_share * first[4 * plane + here] + moved(4));
    const float dx = 0.5f * weight * (first[here] - moved(0)) + a * u + b * v;
    const float dy = 0.5f * weight * (first[plane + here] - moved(1)) + b * u + c * v;
    return {a * a + b * b, (a + c) * b, c * c + b * b, a * dx + b * dy, b * dx + c * dy};
}

// The motion from the equations summed over a window.
FLOW_INLINE Motion solve(Sums s, float scale) {
    s.gxx *= scale, s.gxy *= scale, s.gyy *= scale, s.hx *= scale, s.hy *= scale;
    const float inverse = 1.f / (s.gxx * s.gyy - s.gxy * s.gxy + DAMPING);
    return {(s.gyy * s.hx - s.gxy * s.hy) * inverse, (s.gxx * s.hy - s.gxy * s.hx) * inverse};
}

// The motion that makes |A m - (db + A m_so_far)|^2 + s sum over neighbours |m - m_neighbour|^2 least, given theirs:
// (G + 4 s) m = h + s (sum of the neighbours' m).
FLOW_INLINE Coupling couple(Sums e) {
    const float a = e.gxx + 4.f * SMOOTHNESS, c = e.gyy + 4.f * SMOOTHNESS, b = e.gxy, inverse = 1.f / (a * c - b * b);
    const float scaled = SMOOTHNESS * inverse;
    return {c * scaled, -b * scaled, a * scaled, (c * e.hx - b * e.hy) * inverse, (a * e.hy - b * e.hx) * inverse};
}

// One component of a sweep: `now` from Jacobi's step, `last` from two sweeps ago; Chebyshev's weights make few do.
FLOW_INLINE float accelerated(float now, float last, float omega) { return last + omega * (now - last); }
FLOW_INLINE float next_omega(int sweep, float omega) {
    return sweep == 0 ? 1.f : 1.f / (1.f - SPREAD * SPREAD * (sweep == 1 ? 0.5f : 0.25f * omega));
}

FLOW_INLINE float magnitude(Motion m) { return sqrtf(m.u * m.u + m.v * m.v); }

// IEEE half precision from its bits.
FLOW_INLINE float half_to_float(unsigned short bits) {
    union {
        unsigned int i;
        float f;
    } value;
    value.i = (bits & 0x7fffu) << 13;
    value.f *= 5.192296858534828e33f;  // 2^112: from half's exponent bias to float's
    if (value.f >= 65536.f) value.i |= 0x7f800000u;  // infinity and NaN
    value.i |= (bits & 0x8000u) << 16;
    return value.f;
}

// The bits of the nearest half, of two equally near ones the even one; infinity from 65520 on.
FLOW_INLINE unsigned short float_to_half(float number) {
    union {
        float f;
        unsigned int i;
    } value;
    value.f = number;
    const unsigned int sign = value.i >> 16 & 0x8000u;
    value.i &= 0x7fffffffu;
    if (value.i > 0x7f800000u) return (unsigned short)(sign | 0x7e00u);
    if (value.f >= 65520.f) return (unsigned short)(sign | 0x7c00u);
    if (value.f < 6.103515625e-05f) {  // below half's normal numbers: a last place of 0.5 is one of theirs
        value.f += 0.5f;
        return (unsigned short)(sign | (value.i - 0x3f000000u));
    }
    const unsigned int odd = value.i >> 13 & 1u;
    return (unsigned short)(sign | (value.i - (112u << 23) + 0xfffu + odd) >> 13);
}

}  // namespace flow

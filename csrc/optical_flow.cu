// Farneback's flow on the GPU: kernels over planes of single slices, one launch for all planes of a group of slices.
// kernels/optical_flow/operation.py describes the method; cuda_form.py beside it launches these on torch's stream, level
// by level:
//
//     flow_image_*         frames (any dtype, where they lie) -> blurred, reduced image planes
//     flow_expand_*        image planes -> polynomial expansions
//     flow_upsample        flow of the coarser level -> first guess at this one
//     flow_equations       expansions and flow -> normal equations, summed along y over the window        } once an
//     flow_solve_*         sums -> summed along x as well -> flow; at the end in the layout of the result } iteration
//     flow_mean_magnitude  at the end in place of flow_solve, where only maps of the motion are wanted
//     flow_refine_*        after the last iteration: all sweeps of the refinement; in the layout of the result
//     flow_refine_mean     in its place, where only maps are wanted
//
// The arithmetic is in optical_flow.cuh. blockIdx.z counts planes; where frames are read or results written, slices
// first: the Z values of a pixel lie side by side, so that blocks of neighbouring slices touch the same 32-byte sectors,
// and run close enough in time to find them in the L2 cache. Planes in between lie slice after slice. A row of a block
// works on neighbouring y, which lie side by side. No atomics: the same bits every time.

#include "optical_flow.cuh"

using namespace flow;

// What blockIdx.z stands for where slices are counted first: a slice of the group, and one of n frames, pairs or means.
struct Plane {
    int slice, item, index;  // index: of the plane among those in between, which lie slice after slice

    static __device__ __forceinline__ Plane of_block(int n) {
        const int slices = gridDim.z / n, slice = blockIdx.z % slices, item = blockIdx.z / slices;
        return {slice, item, slice * n + item};
    }
};

static __device__ __forceinline__ float as_float(unsigned char v) { return float(v); }
static __device__ __forceinline__ float as_float(unsigned short v) { return half_to_float(v); }
static __device__ __forceinline__ float as_float(float v) { return v; }

// One pixel of a resampled plane; `stride` from a pixel of `in` to the next along y, Y pixels in a row.
template <class T>
static __device__ __forceinline__ float resample(
    const T* __restrict__ in, int Y, int stride, const int* __restrict__ index_x, const float* __restrict__ weight_x,
    int taps_x, const int* __restrict__ index_y, const float* __restrict__ weight_y, int taps_y, int x, int y, int X_out,
    int Y_out) {
    float sum = 0.f;
    for (int i = 0; i < taps_x; ++i) {
        const T* row = in + size_t(index_x[i * X_out + x]) * Y * stride;
        float along = 0.f;
        for (int j = 0; j < taps_y; ++j)
            along += weight_y[j * Y_out + y] * as_float(row[size_t(index_y[j * Y_out + y]) * stride]);
        sum += weight_x[i * X_out + x] * along;
    }
    return sum;
}

// frames (B, T, X, Y, Z) -> image (slices of the group, F, X_out, Y_out), frames `used` (F,).
template <class T>
static __device__ __forceinline__ void make_image(
    const T* __restrict__ frames, float* __restrict__ image, const int* __restrict__ used, const int* index_x,
    const float* weight_x, int taps_x, const int* index_y, const float* weight_y, int taps_y, int first_slice, int n_used,
    int n_frames, int X, int Y, int Z, int X_out, int Y_out) {
    const int y = blockIdx.x * blockDim.x + threadIdx.x, x = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= X_out || y >= Y_out) return;
    const Plane plane = Plane::of_block(n_used);
    const int slice = first_slice + plane.slice;
    const T* in = frames + (size_t(slice / Z) * n_frames + used[plane.item]) * X * Y * Z + slice % Z;
    image[(size_t(plane.index) * X_out + x) * Y_out + y] =
        resample(in, Y, Z, index_x, weight_x, taps_x, index_y, weight_y, taps_y, x, y, X_out, Y_out);
}

#define FLOW_IMAGE(name, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) name(                                                           \
        const T* frames, float* image, const int* used, const int* index_x, const float* weight_x, int taps_x,        \
        const int* index_y, const float* weight_y, int taps_y, int first_slice, int n_used, int n_frames, int X,      \
        int Y, int Z, int X_out, int Y_out) {                                                                         \
        make_image(frames, image, used, index_x, weight_x, taps_x, index_y, weight_y, taps_y, first_slice, n_used,    \
                   n_frames, X, Y, Z, X_out, Y_out);                                                                  \
    }
FLOW_IMAGE(flow_image_uint8, unsigned char)
FLOW_IMAGE(flow_image_float16, unsigned short)
FLOW_IMAGE(flow_image_float32, float)

// Planes (X, Y) -> planes (X_out, Y_out).
extern "C" __global__ void __launch_bounds__(256) flow_upsample(
    const float* __restrict__ coarse, float* __restrict__ fine, const int* index_x, const float* weight_x, int taps_x,
    const int* index_y, const float* weight_y, int taps_y, int X, int Y, int X_out, int Y_out) {
    const int y = blockIdx.x * blockDim.x + threadIdx.x, x = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= X_out || y >= Y_out) return;
    fine[(size_t(blockIdx.z) * X_out + x) * Y_out + y] =
        resample(coarse + size_t(blockIdx.z) * X * Y, Y, 1, index_x, weight_x, taps_x, index_y, weight_y, taps_y, x, y,
                 X_out, Y_out);
}

// image planes (X, Y) -> expansions (5, X, Y) each; a block is a piece of row blockIdx.y, of at most 256 pixels.
template <int RADIUS>
static __device__ __forceinline__ void expand(
    const float* __restrict__ image, float* __restrict__ expansions, const Filters* __restrict__ filters, int X, int Y) {
    __shared__ float columns[3][256 + 2 * RADIUS];
    const float* plane = image + size_t(blockIdx.z) * X * Y;
    const int x = blockIdx.y, from = blockIdx.x * blockDim.x;
    const Filters& f = *filters;
    for (int i = threadIdx.x; i < int(blockDim.x) + 2 * RADIUS; i += blockDim.x) {
        const Moments m = filter_column<RADIUS>(plane, x, clamp(from + i - RADIUS, Y), X, Y, f);
        columns[0][i] = m.g, columns[1][i] = m.d, columns[2][i] = m.q;
    }
    __syncthreads();
    const int y = from + threadIdx.x, at = threadIdx.x + RADIUS;
    if (y >= Y) return;
    const Expansion e = filter_row<RADIUS>(&columns[0][at], &columns[1][at], &columns[2][at], f);
    const size_t step = size_t(X) * Y;
    float* out = expansions + size_t(blockIdx.z) * COEFFICIENTS * step + x * Y + y;
    out[0] = e.bx, out[step] = e.by, out[2 * step] = e.axx, out[3 * step] = e.ayy, out[4 * step] = e.axy;
}

extern "C" __global__ void __launch_bounds__(256) flow_expand_5(
    const float* image, float* expansions, const Filters* filters, int X, int Y) {
    expand<5>(image, expansions, filters, X, Y);
}

extern "C" __global__ void __launch_bounds__(256) flow_expand_7(
    const float* image, float* expansions, const Filters* filters, int X, int Y) {
    expand<7>(image, expansions, filters, X, Y);
}

// expansions (slices, F, 5, X, Y), flow (slices, P, 2, X, Y) -> sums (slices, P, 5, X, Y) over y - half .. y + half.
// A block is a piece of row blockIdx.y; the dynamic shared memory holds 5 (blockDim.x + 2 half) values.
extern "C" __global__ void __launch_bounds__(256) flow_equations(
    const float* __restrict__ expansions, const float* __restrict__ motion, float* __restrict__ sums,
    const int* __restrict__ pairs, int n_used, int n_pairs, int X, int Y, int half) {
    extern __shared__ float equations[];
    const int slice = blockIdx.z / n_pairs, pair = blockIdx.z % n_pairs;
    const size_t plane = size_t(X) * Y;
    const float* first = expansions + (size_t(slice) * n_used + pairs[2 * pair]) * COEFFICIENTS * plane;
    const float* second = expansions + (size_t(slice) * n_used + pairs[2 * pair + 1]) * COEFFICIENTS * plane;
    const float* u = motion + size_t(blockIdx.z) * 2 * plane;
    const int x = blockIdx.y, from = blockIdx.x * blockDim.x, wide = blockDim.x + 2 * half;
    const float weight = border_weight(x, X);
    for (int i = threadIdx.x; i < wide; i += blockDim.x) {
        const int y = clamp(from + i - half, Y), here = x * Y + y;
        const Sums s = normal_equations(
            first, second, x, y, X, Y, u[here], u[plane + here], weight * border_weight(y, Y));
        equations[i] = s.gxx, equations[wide + i] = s.gxy, equations[2 * wide + i] = s.gyy;
        equations[3 * wide + i] = s.hx, equations[4 * wide + i] = s.hy;
    }
    __syncthreads();
    const int y = from + threadIdx.x;
    if (y >= Y) return;
    float* out = sums + size_t(blockIdx.z) * COEFFICIENTS * plane + x * Y + y;
    for (int c = 0; c < COEFFICIENTS; ++c) {
        float sum = 0.f;
        for (int k = 0; k <= 2 * half; ++k) sum += equations[c * wide + threadIdx.x + k];
        out[c * plane] = sum;
    }
}

// Flow of one y in rows from .. from + STRIP - 1 of a plane: take(x, motion) at each. The sums over x run along.
template <class Take>
static __device__ __forceinline__ void solve_strip(
    const float* __restrict__ sums, int from, int y, int X, int Y, int half, Take take) {
    const size_t plane = size_t(X) * Y;
    const float* in = sums + y;
    float sum[COEFFICIENTS] = {};
    for (int k = -half; k <= half; ++k)
        for (int c = 0; c < COEFFICIENTS; ++c) sum[c] += in[c * plane + clamp(from + k, X) * Y];
    const float scale = 1.f / float((2 * half + 1) * (2 * half + 1));
    for (int x = from; x < X && x < from + STRIP; ++x) {
        take(x, solve({sum[0], sum[1], sum[2], sum[3], sum[4]}, scale));
        for (int c = 0; c < COEFFICIENTS; ++c)
            sum[c] += in[c * plane + clamp(x + 1 + half, X) * Y] - in[c * plane + clamp(x - half, X) * Y];
    }
}

static __device__ __forceinline__ void put(float v, float* out) { *out = v; }
static __device__ __forceinline__ void put(float v, unsigned short* out) { *out = float_to_half(v); }

// sums -> flow (B, all_pairs, 2, X, Y, Z) of the group's slices, and of n_pairs from the first one that `motion` is at.
template <class T>
static __device__ __forceinline__ void solve_plane(
    const float* __restrict__ sums, T* __restrict__ motion, int first_slice, int n_pairs, int all_pairs, int X, int Y,
    int Z, int half) {
    const int y = blockIdx.x * blockDim.x + threadIdx.x, from = blockIdx.y * STRIP;
    if (y >= Y) return;
    const Plane at = Plane::of_block(n_pairs);
    const int slice = first_slice + at.slice;
    const size_t plane = size_t(X) * Y;
    T* out = motion + (size_t(slice / Z) * all_pairs + at.item) * 2 * plane * Z + slice % Z + size_t(y) * Z;
    solve_strip(sums + size_t(at.index) * COEFFICIENTS * plane, from, y, X, Y, half, [&](int x, Motion m) {
        put(m.u, out + size_t(x) * Y * Z), put(m.v, out + (plane + size_t(x) * Y) * Z);
    });
}

extern "C" __global__ void __launch_bounds__(128) flow_solve_float32(
    const float* sums, float* motion, int first_slice, int n_pairs, int all_pairs, int X, int Y, int Z, int half) {
    solve_plane(sums, motion, first_slice, n_pairs, all_pairs, X, Y, Z, half);
}

extern "C" __global__ void __launch_bounds__(128) flow_solve_float16(
    const float* sums, unsigned short* motion, int first_slice, int n_pairs, int all_pairs, int X, int Y, int Z, int half) {
    solve_plane(sums, motion, first_slice, n_pairs, all_pairs, X, Y, Z, half);
}

// Mean magnitudes (B, G, X, Y, Z) of the flow of the group's slices; mean g is over the pairs
// members[begin[g]] .. members[begin[g + 1] - 1] by their shares, `add` to what other pairs have given. A block is
// (MEAN_WIDTH, MEAN_PAIRS): a thread takes STRIP rows of one y of every MEAN_PAIRS-th pair; then the threads of a y add
// up what they have, in order. 8 blocks of a multiprocessor: with 64 registers a thread nothing is spilled.
extern "C" __global__ void __launch_bounds__(MEAN_WIDTH * MEAN_PAIRS, 8) flow_mean_magnitude(
    const float* __restrict__ sums, float* __restrict__ maps, const int* __restrict__ begin,
    const int* __restrict__ members, const float* __restrict__ shares, int add, int first_slice, int n_pairs, int n_means,
    int X, int Y, int Z, int half) {
    __shared__ float parts[MEAN_PAIRS][STRIP][MEAN_WIDTH];
    const int y = blockIdx.x * MEAN_WIDTH + threadIdx.x, from = blockIdx.y * STRIP;
    const Plane at = Plane::of_block(n_means);
    const size_t plane = size_t(X) * Y;
    const float* of_slice = sums + size_t(at.slice) * n_pairs * COEFFICIENTS * plane;
    float (*part)[MEAN_WIDTH] = parts[threadIdx.y];
    for (int i = 0; i < STRIP; ++i) part[i][threadIdx.x] = 0.f;
    if (y < Y)
        for (int k = begin[at.item] + threadIdx.y; k < begin[at.item + 1]; k += MEAN_PAIRS) {
            const float share = shares[k];
            solve_strip(of_slice + members[k] * COEFFICIENTS * plane, from, y, X, Y, half,
                        [&](int x, Motion m) { part[x - from][threadIdx.x] += share * magnitude(m); });
        }
    __syncthreads();
    if (y >= Y) return;
    const int slice = first_slice + at.slice;
    float* out = maps + (size_t(slice / Z) * n_means + at.item) * plane * Z + slice % Z + size_t(y) * Z;
    for (int i = threadIdx.y; i < STRIP && from + i < X; i += MEAN_PAIRS) {
        float* to = out + size_t(from + i) * Y * Z;
        float sum = add ? *to : 0.f;
        for (int k = 0; k < MEAN_PAIRS; ++k) sum += parts[k][i][threadIdx.x];
        *to = sum;
    }
}

// A block (REGION_Y, REGION_ROWS) of the refinement takes a region of (REGION_X, REGION_Y) pixels through all sweeps in
// shared memory; what it does not know beyond the region spoils a pixel more with each sweep, so the outermost `sweeps`
// of the region are not taken.
constexpr int REGION_PIXELS = REGION_X / REGION_ROWS;  // of a thread

// The thread's pixels that are taken: take(k, x) for the k-th of them, at row x of the frame.
template <class Take>
static __device__ __forceinline__ void each_refined(int from_x, int y, int X, int Y, int sweeps, Take take) {
    const int j = threadIdx.x;
    FLOW_UNROLL
    for (int k = 0; k < REGION_PIXELS; ++k) {
        const int i = threadIdx.y + k * REGION_ROWS;
        if (y < Y && from_x + i < X && j >= sweeps && j < REGION_Y - sweeps && i >= sweeps && i < REGION_X - sweeps)
            take(k, from_x + i);
    }
}

// Refines one pair's flow; take(k, x, motion) as in each_refined. Expansions (5, X, Y) of both frames, flow (2, X, Y).
template <class Take>
static __device__ __forceinline__ void refine_region(
    const float* __restrict__ first, const float* __restrict__ second, const float* __restrict__ u, int from_x,
    int from_y, int X, int Y, int sweeps, Take take) {
    __shared__ float region[2][2][REGION_X][REGION_Y];
    const size_t plane = size_t(X) * Y;
    // the part of the region that is in the frame
    const int low_x = flow::max(0, -from_x), high_x = flow::min(REGION_X, X - from_x) - 1;
    const int low_y = flow::max(0, -from_y), high_y = flow::min(REGION_Y, Y - from_y) - 1;
    const int j = threadIdx.x, y = from_y + j, left = flow::max(j - 1, low_y), right = flow::min(j + 1, high_y);
    const bool column_inside = j >= low_y && j <= high_y;
    Coupling coupling[REGION_PIXELS];
    FLOW_UNROLL
    for (int k = 0; k < REGION_PIXELS; ++k) {
        const int i = threadIdx.y + k * REGION_ROWS, x = from_x + i, here = x * Y + y;
        if (!column_inside || i < low_x || i > high_x) continue;
        region[0][0][i][j] = region[1][0][i][j] = u[here], region[0][1][i][j] = region[1][1][i][j] = u[plane + here];
        coupling[k] = couple(normal_equations(
            first, second, x, y, X, Y, u[here], u[plane + here], border_weight(x, X) * border_weight(y, Y)));
    }
    float omega = 1.f;
    for (int sweep = 0; sweep < sweeps; ++sweep) {
        omega = next_omega(sweep, omega);
        __syncthreads();
        const auto& now = region[sweep % 2];
        auto& last = region[1 - sweep % 2];
        FLOW_UNROLL
        for (int k = 0; k < REGION_PIXELS; ++k) {
            const int i = threadIdx.y + k * REGION_ROWS;
            if (!column_inside || i < low_x || i > high_x) continue;
            const int before = flow::max(i - 1, low_x), after = flow::min(i + 1, high_x);
            const float sum_u = now[0][before][j] + now[0][after][j] + now[0][i][left] + now[0][i][right];
            const float sum_v = now[1][before][j] + now[1][after][j] + now[1][i][left] + now[1][i][right];
            const Coupling& c = coupling[k];
            last[0][i][j] = accelerated(c.pxx * sum_u + c.pxy * sum_v + c.qx, last[0][i][j], omega);
            last[1][i][j] = accelerated(c.pxy * sum_u + c.pyy * sum_v + c.qy, last[1][i][j], omega);
        }
    }
    const auto& refined = region[sweeps % 2];
    each_refined(from_x, y, X, Y, sweeps, [&](int k, int x) {
        const int i = threadIdx.y + k * REGION_ROWS;
        take(k, x, {refined[0][i][j], refined[1][i][j]});
    });
}

// Where the block's region begins along an axis.
static __device__ __forceinline__ int region_start(int block, int size, int sweeps) {
    return block * (size - 2 * sweeps) - sweeps;
}

// expansions (slices, F, 5, X, Y), flow (slices, P, 2, X, Y) -> refined flow (B, all_pairs, 2, X, Y, Z) of the group's
// slices, and of P pairs from the first one that `refined` is at.
template <class T>
static __device__ __forceinline__ void refine_flow(
    const float* __restrict__ expansions, const float* __restrict__ motion, T* __restrict__ refined,
    const int* __restrict__ pairs, int first_slice, int n_used, int n_pairs, int all_pairs, int X, int Y, int Z,
    int sweeps) {
    const Plane at = Plane::of_block(n_pairs);
    const size_t plane = size_t(X) * Y;
    const float* of_slice = expansions + size_t(at.slice) * n_used * COEFFICIENTS * plane;
    const int from_x = region_start(blockIdx.y, REGION_X, sweeps), from_y = region_start(blockIdx.x, REGION_Y, sweeps);
    const int slice = first_slice + at.slice, y = from_y + int(threadIdx.x);
    T* out = refined + (size_t(slice / Z) * all_pairs + at.item) * 2 * plane * Z + slice % Z;
    refine_region(of_slice + pairs[2 * at.item] * COEFFICIENTS * plane,
                  of_slice + pairs[2 * at.item + 1] * COEFFICIENTS * plane, motion + size_t(at.index) * 2 * plane, from_x,
                  from_y, X, Y, sweeps, [&](int, int x, Motion m) {
                      const size_t here = size_t(x) * Y + y;
                      put(m.u, out + here * Z), put(m.v, out + (plane + here) * Z);
                  });
}

extern "C" __global__ void __launch_bounds__(REGION_Y * REGION_ROWS) flow_refine_float32(
    const float* expansions, const float* motion, float* refined, const int* pairs, int first_slice, int n_used,
    int n_pairs, int all_pairs, int X, int Y, int Z, int sweeps) {
    refine_flow(expansions, motion, refined, pairs, first_slice, n_used, n_pairs, all_pairs, X, Y, Z, sweeps);
}

extern "C" __global__ void __launch_bounds__(REGION_Y * REGION_ROWS) flow_refine_float16(
    const float* expansions, const float* motion, unsigned short* refined, const int* pairs, int first_slice, int n_used,
    int n_pairs, int all_pairs, int X, int Y, int Z, int sweeps) {
    refine_flow(expansions, motion, refined, pairs, first_slice, n_used, n_pairs, all_pairs, X, Y, Z, sweeps);
}

// The same, but in place of the flow its mean magnitudes as from flow_mean_magnitude: a block refines its region for the
// pairs of a mean one after another, and one that two means share for each of them.
extern "C" __global__ void __launch_bounds__(REGION_Y * REGION_ROWS) flow_refine_mean(
    const float* __restrict__ expansions, const float* __restrict__ motion, float* __restrict__ maps,
    const int* __restrict__ pairs, const int* __restrict__ begin, const int* __restrict__ members,
    const float* __restrict__ shares, int add, int first_slice, int n_used, int n_pairs, int n_means, int X, int Y, int Z,
    int sweeps) {
    const Plane at = Plane::of_block(n_means);
    const size_t plane = size_t(X) * Y;
    const float* of_slice = expansions + size_t(at.slice) * n_used * COEFFICIENTS * plane;
    const int from_x = region_start(blockIdx.y, REGION_X, sweeps), from_y = region_start(blockIdx.x, REGION_Y, sweeps);
    float sums[REGION_PIXELS] = {};
    for (int k = begin[at.item]; k < begin[at.item + 1]; ++k) {
        const int pair = members[k];
        const float share = shares[k];
        refine_region(of_slice + pairs[2 * pair] * COEFFICIENTS * plane,
                      of_slice + pairs[2 * pair + 1] * COEFFICIENTS * plane,
                      motion + (size_t(at.slice) * n_pairs + pair) * 2 * plane, from_x, from_y, X, Y, sweeps,
                      [&](int i, int, Motion m) { sums[i] += share * magnitude(m); });
        __syncthreads();  // the next pair's flow takes the place of what neighbours have still to read
    }
    const int slice = first_slice + at.slice, y = from_y + int(threadIdx.x);
    float* out = maps + (size_t(slice / Z) * n_means + at.item) * plane * Z + slice % Z;
    each_refined(from_x, y, X, Y, sweeps, [&](int i, int x) {
        float* to = out + (size_t(x) * Y + y) * Z;
        *to = add ? *to + sums[i] : sums[i];
    });
}

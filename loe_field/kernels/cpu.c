/* A whole Levels-of-Experts network on a CPU, forward and backward, in fp32.
 *
 * Points go through all layers in chunks that stay in a core's cache. In a chunk the rows of each level are listed by
 * expert; the products read and write rows through these lists, so that no activation is ever moved into another order.
 * The forward pass keeps only the pre-activations z (the backward pass recomputes sine and cosine from them together).
 * Each thread has its own sums of the weight gradients; they are added in a fixed order, so that a result depends on
 * the number of threads and on nothing else.
 *
 * Written with the vector extensions of GCC and Clang; OpenMP where the compiler has it.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16 /* floats in a vector */
#define VECS 4   /* vectors side by side in a block of a product: with ROWS they fill the registers */
#define ROWS 6   /* rows of such a block */
#elif defined(__AVX__)
#define LANES 8
#define VECS 2
#define ROWS 4
#elif defined(__aarch64__)
#define LANES 4
#define VECS 4
#define ROWS 4
#else
#define LANES 4
#define VECS 2
#define ROWS 4
#endif
#define PAD 16       /* widths are padded to this many floats, a multiple of LANES */
#define OUT_ROWS 4   /* rows of a block of a weight gradient */
#define GROUP 64     /* rows whose features fit the first-level cache while a weight gradient passes over them */
#define CHUNK 512    /* points of a chunk, if that leaves each expert enough of them */
#define EXACT 5e4f   /* phases up to which the fast sine is exact to fp32 */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { SINE = 0, LEAKY = 1 };

typedef struct {
    int64_t points, dim, tile_size, experts, levels; /* levels: position-dependent layers; the head comes after them */
    int64_t in_features, width, out_features;
    int64_t activation, threads;
    float omega, slope;            /* sin(omega z); the slope of the leaky ReLU left of zero */
    const float *alpha, *beta;     /* [levels] */
    const float *const *weight;    /* [levels + 1]: [experts, out, in]; the head's [1, out, in] */
    const float *const *bias;      /* [levels + 1]: [out] */
} Network;

static int64_t pad(int64_t n) { return (n + PAD - 1) / PAD * PAD; }
static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t inputs(const Network *net, int64_t layer) { return layer == 0 ? net->in_features : net->width; }
static int64_t outputs(const Network *net, int64_t layer) {
    return layer == net->levels ? net->out_features : net->width;
}
static int64_t experts(const Network *net, int64_t layer) { return layer == net->levels ? 1 : net->experts; }
static int64_t widest(const Network *net) {
    return max(pad(net->width), max(pad(net->in_features), pad(net->out_features)));
}

/* Points of a chunk: CHUNK, more where there are many experts, fewer where a thread has fewer. */
static int64_t chunk_size(const Network *net) {
    int64_t share = (net->points + net->threads - 1) / net->threads;
    return max(1, min(min(max(CHUNK, 64 * net->experts), 16384), share));
}

/* ---- weights in the order in which the products read them ---- */

/* Floats of one layer's packed matrices: [experts][in][pad(out)], or [experts][out][pad(in)] for the backward pass. */
static int64_t packed_size(const Network *net, int64_t layer, int backward) {
    int64_t in = inputs(net, layer), out = outputs(net, layer);
    return experts(net, layer) * (backward ? out * pad(in) : in * pad(out));
}
static int64_t packed_start(const Network *net, int64_t layer, int backward) {
    int64_t start = 0;
    for (int64_t i = 0; i < layer; i++) start += packed_size(net, i, backward);
    return start;
}
static void pack_expert(const Network *net, int64_t layer, int64_t expert, int backward, float *packed) {
    int64_t in = inputs(net, layer), out = outputs(net, layer);
    const float *weight = net->weight[layer] + expert * out * in;
    float *to = packed + packed_start(net, layer, backward) + expert * (packed_size(net, layer, backward) / experts(net, layer));
    if (backward) {
        memset(to, 0, out * pad(in) * sizeof(float));
        for (int64_t o = 0; o < out; o++) memcpy(to + o * pad(in), weight + o * in, in * sizeof(float));
    } else {
        for (int64_t i = 0; i < in; i++) {
            for (int64_t o = 0; o < out; o++) to[i * pad(out) + o] = weight[o * in + i];
            for (int64_t o = out; o < pad(out); o++) to[i * pad(out) + o] = 0;
        }
    }
}

/* ---- which expert serves which row ---- */

/* A function of its own, so that no compiler makes one fused operation of this product and the sum after it: cells must
 * have the same borders here as everywhere else. */
static __attribute__((noinline)) void scale(const float *coords, int64_t n, float alpha, float *scaled) {
    for (int64_t k = 0; k < n; k++) scaled[k] = alpha * coords[k];
}

/* floor(alpha p + beta) mod tile_size, the last axis fastest; scaled is room for [rows, dim]. */
static void expert_index(const Network *net, int64_t level, const float *coords, int64_t rows, float *scaled,
                         uint16_t *index) {
    const int64_t tile = net->tile_size, dim = net->dim;
    const int power_of_two = (tile & (tile - 1)) == 0;
    scale(coords, rows * dim, net->alpha[level], scaled);
    for (int64_t r = 0; r < rows; r++) {
        int64_t expert = 0;
        for (int64_t d = 0; d < dim; d++) {
            float shifted = scaled[r * dim + d] + net->beta[level];
            int64_t cell = fabsf(shifted) < 9e18f ? (int64_t)floorf(shifted) : 0; /* NaN and infinity: any will do */
            int64_t rest = power_of_two ? cell & (tile - 1) : ((cell % tile) + tile) % tile;
            expert = expert * tile + rest;
        }
        index[r] = (uint16_t)expert;
    }
}

/* Row numbers 0 .. rows - 1 by expert: list[starts[e]] .. list[starts[e] + counts[e]]. Each expert's part is filled up
 * to a multiple of ROWS with the number `spare` of a row that nobody reads. */
static void list_rows(const uint16_t *index, int64_t rows, int64_t experts, int32_t spare,
                      int32_t *list, int32_t *starts, int32_t *counts, int32_t *next) {
    memset(counts, 0, experts * sizeof(int32_t));
    for (int64_t r = 0; r < rows; r++) counts[index[r]]++;
    int32_t at = 0;
    for (int64_t e = 0; e < experts; e++) {
        starts[e] = next[e] = at;
        at += (counts[e] + ROWS - 1) / ROWS * ROWS;
        for (int32_t k = starts[e] + counts[e]; k < at; k++) list[k] = spare;
    }
    for (int64_t r = 0; r < rows; r++) list[next[index[r]]++] = (int32_t)r;
}
static int64_t list_size(const Network *net, int64_t rows) { return rows + net->experts * ROWS; }

/* ---- products ---- */

/* ROWS rows of a times b [depth][stride_b] for `vecs` vectors of columns, plus bias, times scale's rows. */
static inline __attribute__((always_inline)) void product_block(
    int vecs, const int32_t *list, const float *a, int64_t stride_a, int64_t depth, const float *b, int64_t stride_b,
    const float *bias, const float *scale, float *out, int64_t stride_out) {
    vec sum[ROWS][VECS];
    const float *row[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        row[r] = a + list[r] * stride_a;
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) sum[r][v] = bias ? *(const vec *)(bias + v * LANES) : (vec){0};
    }
    for (int64_t k = 0; k < depth; k++) {
        vec column[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) column[v] = *(const vec *)(b + k * stride_b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[r][v] += row[r][k] * column[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            vec value = sum[r][v];
            if (scale) value *= *(const vec *)(scale + list[r] * stride_out + v * LANES);
            *(vec *)(out + list[r] * stride_out + v * LANES) = value;
        }
    }
}

/* The listed rows of a times b, for `columns` (a multiple of PAD) columns; the other arguments as above. */
static void product(const int32_t *list, int64_t rows, const float *a, int64_t stride_a, int64_t depth, const float *b,
                    int64_t columns, const float *bias, const float *scale, float *out) {
    for (int64_t c = 0; c < columns;) {
        int wide = columns - c >= VECS * LANES;
        for (int64_t r = 0; r < rows; r += ROWS) {
            const float *bias_c = bias ? bias + c : 0, *scale_c = scale ? scale + c : 0;
            if (wide)
                product_block(VECS, list + r, a, stride_a, depth, b + c, columns, bias_c, scale_c, out + c, columns);
            else
                product_block(1, list + r, a, stride_a, depth, b + c, columns, bias_c, scale_c, out + c, columns);
        }
        c += wide ? VECS * LANES : LANES;
    }
}

/* OUT_ROWS columns of g against `vecs` vectors of columns of x, summed over the listed rows, then added to sums: sums of
 * sums round less. */
static inline __attribute__((always_inline)) void outer_block(
    int vecs, const int32_t *list, int64_t rows, const float *g, int64_t stride_g, const float *x, int64_t stride_x,
    float *sums) {
    vec sum[OUT_ROWS][VECS] = {0};
    for (int64_t r = 0; r < rows; r++) {
        const float *gr = g + list[r] * stride_g, *xr = x + list[r] * stride_x;
        vec column[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) column[v] = *(const vec *)(xr + v * LANES);
#pragma GCC unroll 8
        for (int o = 0; o < OUT_ROWS; o++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[o][v] += gr[o] * column[v];
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUT_ROWS; o++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) *(vec *)(sums + o * stride_x + v * LANES) += sum[o][v];
    }
}

/* sums [pad4(out)][in] += g^T x over the listed rows; g has stride_g columns and x `in` (a multiple of PAD). */
static void outer(const int32_t *list, int64_t rows, const float *g, int64_t stride_g, int64_t out, const float *x,
                  int64_t in, float *sums) {
    for (int64_t from = 0; from < rows; from += GROUP) {
        int64_t group = min(GROUP, rows - from);
        for (int64_t i = 0; i < in;) {
            int wide = in - i >= VECS * LANES;
            for (int64_t o = 0; o < out; o += OUT_ROWS) {
                if (wide)
                    outer_block(VECS, list + from, group, g + o, stride_g, x + i, in, sums + o * in + i);
                else
                    outer_block(1, list + from, group, g + o, stride_g, x + i, in, sums + o * in + i);
            }
            i += wide ? VECS * LANES : LANES;
        }
    }
}

/* sums [columns] += all rows of g [rows][columns], columns a multiple of LANES; by sums of sums too. */
static void add_rows(const float *g, int64_t rows, int64_t columns, float *sums) {
    for (int64_t c = 0; c < columns; c += LANES) {
        vec total = {0};
        for (int64_t from = 0; from < rows; from += 16) {
            vec sum = {0};
            for (int64_t r = from; r < min(from + 16, rows); r++) sum += *(const vec *)(g + r * columns + c);
            total += sum;
        }
        *(vec *)(sums + c) += total;
    }
}

/* ---- activations ---- */

/* sin(phase), and cos(phase) if wanted: phase = n pi + r with |r| <= pi / 2 (Cody and Waite, pi in three parts), then a
 * minimax polynomial in r; errors below 1e-7 for |phase| <= EXACT. */
static inline __attribute__((always_inline)) void sine_cosine(vec phase, vec *sine, vec *cosine) {
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits */
    vec shifted = phase * 0.318309886f + round;
    vec n = shifted - round;
    ivec sign = (ivec)shifted << 31;
    vec r = phase - n * 0x1.921fb6p+1f;
    r = r + n * 0x1.777a5cp-24f;
    r = r + n * 0x1p-48f;
    vec u = r * r;
    vec s = u * 2.600054732e-6f - 1.980661518e-4f;
    s = s * u + 8.333017291e-3f;
    s = s * u - 1.666665710e-1f;
    *sine = (vec)((ivec)(s * u * r + r) ^ sign);
    if (cosine) {
        vec c = u * -2.607710512e-7f + 2.476188623e-5f;
        c = c * u - 1.388840351e-3f;
        c = c * u + 4.166664073e-2f;
        c = c * u - 4.999999955e-1f;
        *cosine = (vec)((ivec)(c * u + 1.0f) ^ sign);
    }
}

/* act(z), and act'(z) if wanted, of n values, n a multiple of LANES. */
static inline __attribute__((always_inline)) void activate(
    const Network *net, const float *z, int64_t n, float *value, float *slope) {
    if (net->activation == LEAKY) {
        for (int64_t k = 0; k < n; k++) {
            float s = z[k] > 0 ? 1.0f : net->slope;
            value[k] = z[k] != z[k] ? z[k] : s * z[k];
            if (slope) slope[k] = s;
        }
        return;
    }
    const float omega = net->omega;
    ivec beyond = {0};
    for (int64_t k = 0; k < n; k += LANES) {
        vec phase = omega * *(const vec *)(z + k), sine, cosine;
        vec magnitude = (vec)((ivec)phase & 0x7fffffff);
        beyond |= ~(magnitude <= EXACT);
        sine_cosine(phase, &sine, slope ? &cosine : 0);
        *(vec *)(value + k) = sine;
        if (slope) *(vec *)(slope + k) = omega * cosine;
    }
    int any = 0;
    for (int lane = 0; lane < LANES; lane++) any |= beyond[lane];
    if (any) { /* rare: exact for any phase, NaN for infinite ones */
        for (int64_t k = 0; k < n; k++) {
            float phase = omega * z[k];
            if (fabsf(phase) <= EXACT) continue;
            value[k] = (float)sin(phase);
            if (slope) slope[k] = omega * (float)cos(phase);
        }
    }
}

/* ---- forward ---- */

typedef struct {
    float *x, *z;
    int32_t *list, *starts, *counts, *next;
} ForwardRoom;

static int64_t forward_room_size(const Network *net) {
    int64_t rows = chunk_size(net) + 1;
    return 2 * rows * widest(net) + list_size(net, rows) + 3 * net->experts;
}
static int64_t bias_size(const Network *net) { return (net->levels + 1) * widest(net); }

/* Floats that loe_forward needs to work in. */
int64_t loe_forward_workspace(const Network *net) {
    return packed_start(net, net->levels + 1, 0) + bias_size(net) + net->threads * forward_room_size(net);
}

/* The network at `points` points.
 *
 * coords [points, dim], x [points, in_features]; index [levels, points] and z [levels, points, pad(width)] are kept for
 * loe_backward, z may be null; out [points, out_features].
 */
void loe_forward(const Network *net, const float *coords, const float *x, uint16_t *index, float *z, float *out,
                 float *workspace) {
    const int64_t levels = net->levels, width = pad(net->width), size = chunk_size(net);
    const int64_t in = net->in_features, channels = net->out_features;
    const int64_t chunks = (net->points + size - 1) / size;
    float *packed = workspace, *bias = packed + packed_start(net, levels + 1, 0);
    float *rooms = bias + bias_size(net);
#pragma omp parallel num_threads(net->threads)
    {
        int64_t thread = 0;
#ifdef _OPENMP
        extern int omp_get_thread_num(void);
        thread = omp_get_thread_num();
#endif
#pragma omp for schedule(static)
        for (int64_t k = 0; k < (levels + 1) * net->experts; k++) {
            int64_t layer = k / net->experts, expert = k % net->experts;
            if (expert < experts(net, layer)) pack_expert(net, layer, expert, 0, packed);
            if (expert == 0) {
                float *to = bias + layer * widest(net);
                memset(to, 0, widest(net) * sizeof(float));
                memcpy(to, net->bias[layer], outputs(net, layer) * sizeof(float));
            }
        }
        ForwardRoom room;
        room.x = rooms + thread * forward_room_size(net);
        room.z = room.x + (size + 1) * widest(net);
        room.list = (int32_t *)(room.z + (size + 1) * widest(net));
        room.starts = room.list + list_size(net, size + 1);
        room.counts = room.starts + net->experts;
        room.next = room.counts + net->experts;
        memset(room.x, 0, (size + 1) * widest(net) * sizeof(float));
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * size, rows = min(size, net->points - first);
            for (int64_t r = 0; r < rows; r++) memcpy(room.x + r * in, x + (first + r) * in, in * sizeof(float));
            for (int64_t level = 0; level < levels; level++) {
                uint16_t *here = index + level * net->points + first;
                expert_index(net, level, coords + first * net->dim, rows, room.z, here);
                list_rows(here, rows, net->experts, (int32_t)size, room.list, room.starts, room.counts, room.next);
                const int64_t depth = inputs(net, level);
                const int64_t stride = level == 0 ? in : width;
                for (int64_t e = 0; e < net->experts; e++)
                    product(room.list + room.starts[e], room.counts[e], room.x, stride, depth,
                            packed + packed_start(net, level, 0) + e * depth * width, width,
                            bias + level * widest(net), 0, room.z);
                if (z) memcpy(z + (level * net->points + first) * width, room.z, rows * width * sizeof(float));
                activate(net, room.z, rows * width, room.x, 0);
            }
            for (int64_t k = 0; k < (rows + ROWS - 1) / ROWS * ROWS; k++) room.list[k] = (int32_t)(k < rows ? k : size);
            product(room.list, rows, room.x, width, net->width, packed + packed_start(net, levels, 0), pad(channels),
                    bias + levels * widest(net), 0, room.z);
            for (int64_t r = 0; r < rows; r++)
                memcpy(out + (first + r) * channels, room.z + r * pad(channels), channels * sizeof(float));
        }
    }
}

/* ---- backward ---- */

/* Floats of one thread's sums: per layer the weight gradient [experts][out to OUT_ROWS][pad(in)] and the bias's. */
static int64_t sum_rows(int64_t out) { return (out + OUT_ROWS - 1) / OUT_ROWS * OUT_ROWS; }
static int64_t sums_start(const Network *net, int64_t layer) {
    int64_t start = 0;
    for (int64_t i = 0; i < layer; i++)
        start += experts(net, i) * sum_rows(outputs(net, i)) * pad(inputs(net, i)) + pad(outputs(net, i));
    return start;
}
static int64_t backward_room_size(const Network *net) {
    int64_t rows = chunk_size(net) + 1;
    return 4 * rows * widest(net) + list_size(net, rows) + 3 * net->experts + sums_start(net, net->levels + 1);
}

/* Floats that loe_backward needs to work in. */
int64_t loe_backward_workspace(const Network *net) {
    return packed_start(net, net->levels + 1, 1) + net->threads * backward_room_size(net);
}

/* Gradients from the output's, grad_out [points, out_features].
 *
 * x, index and z as loe_forward took and left them. grad_x [points, in_features] may be null; grad_weight and grad_bias,
 * [levels + 1] pointers, are each null or complete.
 */
void loe_backward(const Network *net, const float *x, const uint16_t *index, const float *z, const float *grad_out,
                  float *grad_x, float *const *grad_weight, float *const *grad_bias, float *workspace) {
    const int64_t levels = net->levels, width = pad(net->width), size = chunk_size(net);
    const int64_t in = net->in_features, channels = net->out_features, most = widest(net);
    const int64_t chunks = (net->points + size - 1) / size;
    float *packed = workspace, *rooms = packed + packed_start(net, levels + 1, 1);
    const int64_t sums_at = 4 * (size + 1) * most + list_size(net, size + 1) + 3 * net->experts;
#pragma omp parallel num_threads(net->threads)
    {
        int64_t thread = 0, threads = 1;
#ifdef _OPENMP
        extern int omp_get_thread_num(void), omp_get_num_threads(void);
        thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
#pragma omp for schedule(static)
        for (int64_t k = 0; k < (levels + 1) * net->experts; k++)
            if (k % net->experts < experts(net, k / net->experts))
                pack_expert(net, k / net->experts, k % net->experts, 1, packed);
        float *grad = rooms + thread * backward_room_size(net); /* with respect to a layer's output before act */
        float *before = grad + (size + 1) * most;                /* the same of the layer before */
        float *value = before + (size + 1) * most;               /* the layer's input */
        float *slope = value + (size + 1) * most;                /* act' where that input came from */
        int32_t *list = (int32_t *)(slope + (size + 1) * most);
        int32_t *starts = list + list_size(net, size + 1), *counts = starts + net->experts, *next = counts + net->experts;
        float *sums = rooms + thread * backward_room_size(net) + sums_at;
        memset(sums, 0, sums_start(net, levels + 1) * sizeof(float));
        memset(grad, 0, 4 * (size + 1) * most * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * size, rows = min(size, net->points - first);
            for (int64_t r = 0; r < rows; r++) {
                float *to = grad + r * pad(channels);
                memcpy(to, grad_out + (first + r) * channels, channels * sizeof(float));
                for (int64_t c = channels; c < pad(channels); c++) to[c] = 0;
            }
            for (int64_t layer = levels; layer >= 0; layer--) {
                const int64_t out = outputs(net, layer), depth = inputs(net, layer), columns = pad(depth);
                if (layer > 0) {
                    activate(net, z + ((layer - 1) * net->points + first) * width, rows * width, value, slope);
                } else {
                    for (int64_t r = 0; r < rows; r++) {
                        memcpy(value + r * columns, x + (first + r) * in, in * sizeof(float));
                        for (int64_t c = in; c < columns; c++) value[r * columns + c] = 0;
                    }
                }
                if (layer < levels) {
                    list_rows(index + layer * net->points + first, rows, net->experts, (int32_t)size, list, starts,
                              counts, next);
                } else {
                    starts[0] = 0, counts[0] = (int32_t)rows;
                    for (int64_t k = 0; k < (rows + ROWS - 1) / ROWS * ROWS; k++) list[k] = (int32_t)(k < rows ? k : size);
                }
                float *sum = sums + sums_start(net, layer);
                for (int64_t e = 0; e < experts(net, layer); e++, sum += sum_rows(out) * columns) {
                    if (grad_weight) outer(list + starts[e], counts[e], grad, pad(out), out, value, columns, sum);
                    if (layer > 0 || grad_x)
                        product(list + starts[e], counts[e], grad, pad(out), out,
                                packed + packed_start(net, layer, 1) + e * out * columns, columns, 0,
                                layer > 0 ? slope : 0, before);
                }
                if (grad_bias) add_rows(grad, rows, pad(out), sum);
                float *swap = grad;
                grad = before, before = swap;
            }
            if (grad_x)
                for (int64_t r = 0; r < rows; r++)
                    memcpy(grad_x + (first + r) * in, grad + r * pad(in), in * sizeof(float));
        }
        /* Add up the threads' sums, one layer's output row after the other. */
        for (int64_t layer = 0; layer <= levels; layer++) {
            const int64_t out = outputs(net, layer), depth = inputs(net, layer), columns = pad(depth);
            const int64_t start = sums_at + sums_start(net, layer), matrices = experts(net, layer);
            if (grad_weight) {
#pragma omp for schedule(static) nowait
                for (int64_t k = 0; k < matrices * out; k++) {
                    float *to = grad_weight[layer] + k * depth;
                    const float *from = rooms + start + (k / out * sum_rows(out) + k % out) * columns;
                    memcpy(to, from, depth * sizeof(float));
                    for (int64_t t = 1; t < threads; t++)
                        for (int64_t i = 0; i < depth; i++) to[i] += from[t * backward_room_size(net) + i];
                }
            }
            if (grad_bias && thread == 0) {
                const float *from = rooms + start + matrices * sum_rows(out) * columns;
                memcpy(grad_bias[layer], from, out * sizeof(float));
                for (int64_t t = 1; t < threads; t++)
                    for (int64_t o = 0; o < out; o++) grad_bias[layer][o] += from[t * backward_room_size(net) + o];
            }
        }
    }
}

/* A whole Levels-of-Experts network on a CPU, forward and backward, in fp32; on processors with AVX-512 BF16 also with
 * bf16 products between the first layer and the head (sums, phases, pre-activations and weight gradients stay fp32).
 * At the end Muon's update of its matrices, with either kind of products too.
 *
 * Points go through all layers in chunks that stay in a core's cache. In a chunk the rows of each level are listed by
 * expert; the products read and write rows through these lists, so that no activation is ever moved into another order.
 * The forward pass keeps only the pre-activations z (the backward pass recomputes sine and cosine from them together).
 * Each thread has its own sums of the weight gradients; they are added in a fixed order, so that a result depends on
 * the number of threads and on nothing else. The gradient of a bias tile of many vectors has no such sums, which would
 * be larger than the points: each thread adds up a part of the vectors, over all points.
 *
 * Written with the vector extensions of GCC and Clang; OpenMP where the compiler has it.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16 /* floats in a vector */
#define VECS 4   /* vectors side by side in a block of a product: with ROWS they fill the registers */
#define ROWS 6   /* rows of such a block */
#elif defined(__AVX__)
#include <immintrin.h>
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
#if defined(__AVX512BF16__)
#define HAS_HALF 1
#else
#define HAS_HALF 0
#endif

/* What becomes of a product. */
typedef enum {
    PLAIN, /* out = sum */
    SINE,  /* out = sin(omega sum), and sum into `extra` if there is one */
    LEAKY, /* out = sum, times a slope left of zero, and sum into `extra` if there is one */
    SCALE  /* out = sum * extra, whose rows are those of the block, not of the list */
} Finish;

#define PAD 16       /* widths are padded to this many floats, a multiple of LANES */
#define OUT_ROWS 4   /* rows of a block of a weight gradient */
#define GROUP (64 / ROWS * ROWS) /* rows of one expert that the backward pass handles at once: they fit a core's L1 */
#define MUON_ROWS (LANES == 16 ? 8 : 4) /* rows of a block of Muon's products, which divide PAD, */
#define MUON_VECS 2                     /* and its vectors side by side */
#define CHUNK 512    /* points of a chunk, if that leaves each expert enough of them */
#define AHEAD 8      /* rows to fetch ahead from memory */
#define EXACT 5e4f   /* phases up to which the fast sine is exact to fp32 */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* The tile of a level's bias: `corners` of its `vectors` are blended at a point; none where all points share one. */
typedef struct {
    int64_t corners, tile_size, vectors, hashed; /* hashed: the tile has more vectors than it keeps, a power of two */
    float alpha, beta;
} Tile;

typedef struct {
    int64_t points, dim, levels; /* levels: position-dependent layers; the head comes after them */
    int64_t most_experts, any_tile; /* experts of the level that has most; whether a level has a bias tile */
    int64_t in_features, width, out_features;
    int64_t half;                  /* whether layers between the first and the head multiply in bf16 */
    int64_t threads, activation;   /* SINE or LEAKY */
    double parameter;              /* omega, or the slope */
    const int64_t *tile_size, *experts; /* [levels] */
    const Tile *bias_tile;         /* [levels] */
    const float *alpha, *beta;     /* [levels] */
    const float *const *weight;    /* [levels + 1]: [experts, out, in]; the head's [1, out, in] */
    const float *const *bias;      /* [levels + 1]: [out], or a tile's [vectors, out] */
} Network;

static int64_t pad(int64_t n) { return (n + PAD - 1) / PAD * PAD; }
static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t inputs(const Network *net, int64_t layer) { return layer == 0 ? net->in_features : net->width; }
static int64_t outputs(const Network *net, int64_t layer) {
    return layer == net->levels ? net->out_features : net->width;
}
static int64_t experts(const Network *net, int64_t layer) { return layer == net->levels ? 1 : net->experts[layer]; }
static int64_t corners(const Network *net, int64_t layer) {
    return layer == net->levels ? 0 : net->bias_tile[layer].corners;
}
static int64_t vectors(const Network *net, int64_t layer) {
    return corners(net, layer) ? net->bias_tile[layer].vectors : 1;
}
static int half(const Network *net, int64_t layer) { return net->half && layer > 0 && layer < net->levels; }
static int64_t widest(const Network *net) {
    return max(pad(net->width), max(pad(net->in_features), pad(net->out_features)));
}

/* Points of a chunk: CHUNK, more where there are many experts, fewer where a thread has fewer. */
static int64_t chunk_size(const Network *net) {
    int64_t share = (net->points + net->threads - 1) / net->threads;
    return max(1, min(min(max(CHUNK, 64 * net->most_experts), 16384), share));
}

/* ---- bf16: two to a 32-bit word ---- */

/* sum + a * b in every lane; of half words both pairs, products and sum in fp32. */
static inline __attribute__((always_inline)) vec multiply_add(int half, vec sum, float a, vec b) {
#if HAS_HALF
    if (half) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
    (void)half;
    return sum + a * b;
}

static inline uint32_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to nearest, ties to even */
}

#if HAS_HALF
static inline __m256i halves(vec v) { return (__m256i)_mm512_cvtneps_pbh((__m512)v); }
/* Lane by lane the halves of a below those of b. */
static inline vec pairs(__m256i a, __m256i b) {
    return (vec)_mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}
#endif

/* Writes a vector to place `at` of out, as floats or halves. */
static inline __attribute__((always_inline)) void store(int half, float *out, int64_t at, vec v) {
#if HAS_HALF
    if (half) {
        _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), halves(v));
        return;
    }
#endif
    (void)half;
    *(vec *)(out + at) = v;
}

/* n numbers x into to, filled up with zeros to `columns` of them, a multiple of LANES; for a few numbers a call of memcpy
 * takes longer than all else. */
static inline __attribute__((always_inline)) void fill_row(const float *x, int64_t n, int64_t columns, float *to) {
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) *(vec *)(to + c) = *(const vec *)(x + c);
    if (c < n) {
#if defined(__AVX512F__)
        _mm512_storeu_ps(to + c, _mm512_maskz_loadu_ps((__mmask16)((1 << (n - c)) - 1), x + c));
#else
        *(vec *)(to + c) = (vec){0};
        for (int64_t k = c; k < n; k++) to[k] = x[k];
#endif
        c += LANES;
    }
    for (; c < columns; c += LANES) *(vec *)(to + c) = (vec){0};
}
/* n numbers x, behind which there is room up to a multiple of LANES, into to, behind which there is none. */
static inline __attribute__((always_inline)) void cut_row(const float *x, int64_t n, float *to) {
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) *(vec *)(to + c) = *(const vec *)(x + c);
#if defined(__AVX512F__)
    if (c < n) _mm512_mask_storeu_ps(to + c, (__mmask16)((1 << (n - c)) - 1), _mm512_loadu_ps(x + c));
#else
    for (; c < n; c++) to[c] = x[c];
#endif
}

/* ---- weights in the order in which the products read them ---- */

/* Words of one of a layer's packed matrices: [in][pad(out)], or [out][pad(in)] for the backward pass; of halves
 * [pad(in) / 2][pad(out)] pairs of inputs, or [pad(out) / 2][pad(in)] pairs of outputs. */
static int64_t packed_matrix(const Network *net, int64_t layer, int backward) {
    int64_t in = inputs(net, layer), out = outputs(net, layer);
    if (half(net, layer)) return pad(in) * pad(out) / 2;
    return backward ? out * pad(in) : in * pad(out);
}
static int64_t packed_size(const Network *net, int64_t layer, int backward) {
    if (backward && !half(net, layer) && inputs(net, layer) == pad(inputs(net, layer))) return 0; /* as they are */
    return experts(net, layer) * packed_matrix(net, layer, backward);
}
static int64_t packed_start(const Network *net, int64_t layer, int backward) {
    int64_t start = 0;
    for (int64_t i = 0; i < layer; i++) start += packed_size(net, i, backward);
    return start;
}
static void pack_expert(const Network *net, int64_t layer, int64_t expert, int backward, float *packed) {
    const int64_t in = inputs(net, layer), out = outputs(net, layer);
    const float *weight = net->weight[layer] + expert * out * in;
    if (packed_size(net, layer, backward) == 0) return;
    float *to = packed + packed_start(net, layer, backward) + expert * packed_matrix(net, layer, backward);
    if (half(net, layer)) {
        uint16_t *words = (uint16_t *)to;
        memset(to, 0, pad(in) * pad(out) * sizeof(uint16_t));
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++) {
                int64_t at = backward ? (o / 2 * pad(in) + i) * 2 + o % 2 : (i / 2 * pad(out) + o) * 2 + i % 2;
                words[at] = (uint16_t)to_half(weight[o * in + i]);
            }
    } else if (backward) {
        memset(to, 0, out * pad(in) * sizeof(float));
        for (int64_t o = 0; o < out; o++) memcpy(to + o * pad(in), weight + o * in, in * sizeof(float));
    } else {
        for (int64_t i = 0; i < in; i++) {
            for (int64_t o = 0; o < out; o++) to[i * pad(out) + o] = weight[o * in + i];
            for (int64_t o = out; o < pad(out); o++) to[i * pad(out) + o] = 0;
        }
    }
}

/* ---- threads ---- */

static int thread_number(void) {
#ifdef _OPENMP
    extern int omp_get_thread_num(void);
    return omp_get_thread_num();
#else
    return 0;
#endif
}
static int thread_count(void) {
#ifdef _OPENMP
    extern int omp_get_num_threads(void);
    return omp_get_num_threads();
#else
    return 1;
#endif
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
    const int64_t tile = net->tile_size[level], dim = net->dim;
    const int power_of_two = (tile & (tile - 1)) == 0;
    if (tile == 1) {
        memset(index, 0, rows * sizeof(uint16_t));
        return;
    }
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
 * to a multiple of ROWS by repeating its last row, which is then computed twice, to the same end. */
static void list_rows(const uint16_t *index, int64_t rows, int64_t experts, int32_t *list, int32_t *starts,
                      int32_t *counts, int32_t *next) {
    memset(counts, 0, experts * sizeof(int32_t));
    for (int64_t r = 0; r < rows; r++) counts[index[r]]++;
    int32_t at = 0;
    for (int64_t e = 0; e < experts; e++) {
        starts[e] = next[e] = at;
        at += (counts[e] + ROWS - 1) / ROWS * ROWS;
    }
    for (int64_t r = 0; r < rows; r++) list[next[index[r]]++] = (int32_t)r;
    for (int64_t e = 0; e < experts; e++)
        for (int32_t k = counts[e]; k % ROWS; k++) list[starts[e] + k] = list[starts[e] + k - 1];
}
static void list_all(int64_t rows, int32_t *list, int32_t *starts, int32_t *counts) {
    starts[0] = 0, counts[0] = (int32_t)rows;
    for (int64_t k = 0; k < (rows + ROWS - 1) / ROWS * ROWS; k++) list[k] = (int32_t)min(k, rows - 1);
}
static int64_t list_size(const Network *net) { return chunk_size(net) + net->most_experts * ROWS + AHEAD; }

/* ---- bias tiles ---- */

/* What every row of a chunk blends: corner c of row r is vector entry[c][r] with share[c][r], and fraction[d][r] is
 * where the row lies in its cell. */
typedef struct {
    int32_t *entry;
    float *share, *fraction, *scaled;
    uint32_t *part; /* of entry: [dim][2][rows], at the lower and the upper corner of each axis */
    int64_t stride; /* rows of the arrays */
} Corners;
static int64_t corners_size(const Network *net) {
    return net->any_tile ? (2 * (1 << net->dim) + 4 * net->dim) * chunk_size(net) : 0;
}
static Corners corners_in(const Network *net, float *room) {
    const int64_t size = chunk_size(net), most = (1 << net->dim) * size;
    float *share = room + most, *fraction = share + most, *scaled = fraction + net->dim * size;
    return (Corners){(int32_t *)room, share, fraction, scaled, (uint32_t *)(scaled + net->dim * size), size};
}

/* The cells of one axis, from its scaled coordinates, every `stride`-th of them: the number of each row's lower and upper
 * corner in the tile, times `factor`, and where the row lies between them. */
static inline __attribute__((always_inline)) void find_cells(const Tile *tile, const float *scaled, int64_t stride,
                                                             int64_t rows, uint32_t factor, float *fraction,
                                                             uint32_t *low, uint32_t *high) {
    const uint32_t last = (uint32_t)tile->tile_size - 1;
    const float most = (float)last;
    int outside = 0;
    for (int64_t r = 0; r < rows; r++) {
        const float shifted = scaled[r * stride] + tile->beta, cell = floorf(shifted);
        const int inside = cell >= 0 && cell <= most;
        const uint32_t at = inside ? (uint32_t)(int32_t)cell : 0;
        outside |= !inside;
        fraction[r] = shifted - cell;
        low[r] = at * factor;
        high[r] = (at == last ? 0 : at + 1) * factor;
    }
    if (!outside) return;
    const double size = (double)tile->tile_size, inverse = 1 / size;
    for (int64_t r = 0; r < rows; r++) {
        const float cell = floorf(scaled[r * stride] + tile->beta);
        /* The remainder, exact: the quotient may be one off, and cells are whole numbers. */
        double rest = cell - size * floor(cell * inverse);
        rest += rest < 0 ? size : 0;
        rest -= rest >= size ? size : 0;
        const uint32_t at = rest >= 0 && rest < size ? (uint32_t)(int32_t)rest : 0; /* NaN and infinity: any will do */
        low[r] = at * factor;
        high[r] = (at == last ? 0 : at + 1) * factor;
    }
}

static const uint32_t PRIMES[4] = {1, 2654435761u, 805459861u, 3674653429u}; /* of the spatial hash */

static inline __attribute__((always_inline)) void find_corners_of(const Tile *tile, int64_t dim, const float *coords,
                                                                  int64_t rows, Corners to) {
    const int64_t stride = to.stride;
    scale(coords, rows * dim, tile->alpha, to.scaled);
    uint32_t step = 1;
    for (int64_t d = dim - 1; d >= 0; d--) {
        uint32_t *low = to.part + 2 * d * stride;
        find_cells(tile, to.scaled + d, dim, rows, tile->hashed ? PRIMES[d] : step, to.fraction + d * stride, low,
                   low + stride);
        step *= (uint32_t)tile->tile_size;
    }
    const uint32_t mask = tile->hashed ? (uint32_t)tile->vectors - 1 : UINT32_MAX;
    for (int64_t c = 0; c < tile->corners; c++) {
        int32_t *entry = to.entry + c * stride;
        float *share = to.share + c * stride;
        for (int64_t r = 0; r < rows; r++) {
            uint32_t sum = 0;
            float product = 1;
#pragma GCC unroll 4
            for (int64_t d = 0; d < dim; d++) {
                const int upper = c >> (dim - 1 - d) & 1;
                const uint32_t part = to.part[(2 * d + upper) * stride + r];
                const float fraction = to.fraction[d * stride + r];
                sum = tile->hashed ? sum ^ part : sum + part;
                product *= tile->corners == 1 ? 1 : upper ? fraction : 1 - fraction;
            }
            entry[r] = (int32_t)(sum & mask);
            share[r] = product;
        }
    }
}
/* `Corners` of the rows at coords [rows, dim]. */
static void find_corners(const Tile *tile, int64_t dim, const float *coords, int64_t rows, Corners to) {
    switch (dim) {
    case 1: find_corners_of(tile, 1, coords, rows, to); return;
    case 2: find_corners_of(tile, 2, coords, rows, to); return;
    case 3: find_corners_of(tile, 3, coords, rows, to); return;
    default: find_corners_of(tile, 4, coords, rows, to);
    }
}

/* Words of a copy of a level's tile with padded rows; 0: it is read where it is. */
static int64_t padded_tile(const Network *net, int64_t level) {
    const int64_t out = outputs(net, level);
    return corners(net, level) && out != pad(out) ? vectors(net, level) * pad(out) : 0;
}
static int64_t padded_tiles(const Network *net, int64_t levels) {
    int64_t start = 0;
    for (int64_t i = 0; i < levels; i++) start += padded_tile(net, i);
    return start;
}
/* Part `which` of `parts` of that copy. */
static void pad_tiles(const Network *net, int64_t which, int64_t parts, float *to) {
    for (int64_t level = 0; level < net->levels; level++) {
        const int64_t out = outputs(net, level), count = padded_tile(net, level) / pad(out);
        for (int64_t k = which; k < count; k += parts) {
            memcpy(to + k * pad(out), net->bias[level] + k * out, out * sizeof(float));
            memset(to + k * pad(out) + out, 0, (pad(out) - out) * sizeof(float));
        }
        to += padded_tile(net, level);
    }
}
static const float *tile_rows(const Network *net, int64_t level, const float *padded) {
    return padded_tile(net, level) ? padded + padded_tiles(net, level) : net->bias[level];
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

/* act(z), and act'(z) if wanted; lanes of `beyond` are set where the fast sine is not exact. */
static inline __attribute__((always_inline)) void activate(Finish kind, float parameter, vec z, vec *value,
                                                           vec *slope, ivec *beyond) {
    if (kind == LEAKY) {
        ivec positive = z > 0.0f;
        vec one = (vec){0} + 1.0f, less = (vec){0} + parameter;
        vec factor = (vec)(((ivec)one & positive) | ((ivec)less & ~positive));
        *value = factor * z;
        if (slope) *slope = factor;
        return;
    }
    vec phase = parameter * z;
    *beyond |= ~((vec)((ivec)phase & 0x7fffffff) <= EXACT);
    sine_cosine(phase, value, slope);
    if (slope) *slope *= parameter;
}
static int any(ivec lanes) {
    int32_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all |= lanes[lane];
    return all != 0;
}
/* The same for n values with large, infinite or undefined phases among them; value may be z. */
static void activate_exactly(float omega, const float *z, int64_t n, float *value, float *slope) {
    for (int64_t k = 0; k < n; k++) {
        float phase = omega * z[k];
        value[k] = (float)sin(phase);
        if (slope) slope[k] = omega * (float)cos(phase);
    }
}

/* ---- products ---- */

typedef struct {
    const float *rows;
    int64_t stride, depth; /* words from row to row, and words of a row */
    int half;
} Left;
typedef struct {
    float *rows;
    int half;
} Out;
typedef struct {
    const float *rows; /* one vector, or a tile of them; null: none */
    int64_t corners;   /* vectors that a row blends; 0: one for all */
    Corners at;
} Bias;

/* ROWS listed rows of a times b [depth][columns] for `vecs` vectors of columns from `column` on, plus bias, finished and
 * written to the same rows of out [..][columns]. */
static inline __attribute__((always_inline)) void product_block(
    Finish finish, float parameter, int vecs, const int32_t *list, const Left a, const float *b, int64_t columns,
    int64_t column, const Bias bias, float *extra, const Out out, ivec *beyond) {
    vec sum[ROWS][VECS];
    const float *row[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        row[r] = a.rows + list[r] * a.stride;
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            /* Lists jump about: where the processor cannot guess what comes next, tell it. */
            if (finish != SCALE && extra) __builtin_prefetch(extra + list[r] * columns + column + v * LANES, 1);
            sum[r][v] = bias.rows && !bias.corners ? *(const vec *)(bias.rows + column + v * LANES) : (vec){0};
        }
    }
    for (int64_t k = 0; k < a.depth; k++) {
        vec right[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) right[v] = *(const vec *)(b + k * columns + column + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[r][v] = multiply_add(a.half, sum[r][v], row[r][k], right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        for (int64_t c = 0; c < bias.corners; c++) {
            const int64_t which = c * bias.at.stride + list[r];
            const float *vector = bias.rows + bias.at.entry[which] * columns + column, share = bias.at.share[which];
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[r][v] += share * *(const vec *)(vector + v * LANES);
        }
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            const int64_t at = list[r] * columns + column + v * LANES;
            vec value = sum[r][v];
            if (finish == SINE || finish == LEAKY) {
                if (extra) *(vec *)(extra + at) = value;
                activate(finish, parameter, value, &value, 0, beyond);
            }
            if (finish == SCALE) value *= *(const vec *)(extra + r * columns + column + v * LANES);
            store(out.half, out.rows, at, value);
        }
    }
}
static inline __attribute__((always_inline)) int product_as(
    Finish finish, float parameter, const int32_t *list, int64_t rows, const Left a, const float *b, int64_t columns,
    const Bias bias, float *extra, const Out out) {
    ivec beyond = {0};
    for (int64_t c = 0; c < columns;) {
        /* Sums of one vector wait for each other; of the products that end in a first layer some are 2 or 3 wide. */
        const int any_width = (finish == PLAIN || finish == SCALE) && !a.half && !out.half;
        int64_t vecs = min(VECS, (columns - c) / LANES);
        if (vecs < VECS && !any_width) vecs = 1;
        for (int64_t r = 0; r < rows; r += ROWS) {
            float *extra_r = finish == SCALE ? extra + r * columns : extra;
            if (vecs == VECS)
                product_block(finish, parameter, VECS, list + r, a, b, columns, c, bias, extra_r, out, &beyond);
            else if (any_width && VECS > 3 && vecs == 3)
                product_block(finish, parameter, VECS > 3 ? 3 : 1, list + r, a, b, columns, c, bias, extra_r, out,
                              &beyond);
            else if (any_width && VECS > 2 && vecs == 2)
                product_block(finish, parameter, 2, list + r, a, b, columns, c, bias, extra_r, out, &beyond);
            else
                product_block(finish, parameter, 1, list + r, a, b, columns, c, bias, extra_r, out, &beyond);
        }
        c += vecs * LANES;
    }
    return any(beyond);
}
/* Each combination of halves and floats with a loop of its own. */
static inline __attribute__((always_inline)) int product_of(
    Finish finish, float parameter, const int32_t *list, int64_t rows, Left a, const float *b, int64_t columns,
    const Bias bias, float *extra, Out out) {
#if HAS_HALF
    if (a.half && out.half) {
        a.half = out.half = 1;
        return product_as(finish, parameter, list, rows, a, b, columns, bias, extra, out);
    }
    if (a.half) {
        a.half = 1, out.half = 0;
        return product_as(finish, parameter, list, rows, a, b, columns, bias, extra, out);
    }
    if (out.half) {
        a.half = 0, out.half = 1;
        return product_as(finish, parameter, list, rows, a, b, columns, bias, extra, out);
    }
#endif
    a.half = out.half = 0;
    return product_as(finish, parameter, list, rows, a, b, columns, bias, extra, out);
}

/* The listed rows of a times b [depth][columns], plus bias, finished, into the same rows of out; columns is a multiple of
 * PAD and the row length of extra and out. Returns whether a phase was beyond the fast sine. */
static int product(Finish finish, float parameter, const int32_t *list, int64_t rows, Left a, const float *b,
                   int64_t columns, Bias bias, float *extra, Out out) {
    switch (finish) {
    case SINE: return product_of(SINE, parameter, list, rows, a, b, columns, bias, extra, out);
    case LEAKY: return product_of(LEAKY, parameter, list, rows, a, b, columns, bias, extra, out);
    case SCALE: return product_of(SCALE, 0, list, rows, a, b, columns, bias, extra, out);
    default: return product_of(PLAIN, 0, list, rows, a, b, columns, bias, 0, out);
    }
}

/* OUT_ROWS columns of g against `vecs` vectors of columns of x, summed over the rows, then added to sums: sums of sums
 * round less. Rows of words; of halves each is a pair of rows, column by column. */
static inline __attribute__((always_inline)) void outer_block(
    int half, int vecs, int64_t rows, const float *g, int64_t stride_g, const float *x, int64_t stride_x, float *sums) {
    vec sum[OUT_ROWS][VECS] = {0};
    for (int64_t r = 0; r < rows; r++) {
        vec right[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) right[v] = *(const vec *)(x + r * stride_x + v * LANES);
#pragma GCC unroll 8
        for (int o = 0; o < OUT_ROWS; o++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[o][v] = multiply_add(half, sum[o][v], g[r * stride_g + o], right[v]);
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUT_ROWS; o++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) *(vec *)(sums + o * stride_x + v * LANES) += sum[o][v];
    }
}
static inline __attribute__((always_inline)) void outer_as(int half, int64_t rows, const float *g, int64_t stride_g,
                                                           int64_t out, const float *x, int64_t in, float *sums) {
    for (int64_t i = 0; i < in;) {
        const int64_t vecs = min(VECS, (in - i) / LANES);
        for (int64_t o = 0; o < out; o += OUT_ROWS) {
            if (vecs == VECS)
                outer_block(half, VECS, rows, g + o, stride_g, x + i, in, sums + o * in + i);
            else if (VECS > 3 && vecs == 3)
                outer_block(half, VECS > 3 ? 3 : 1, rows, g + o, stride_g, x + i, in, sums + o * in + i);
            else if (VECS > 2 && vecs == 2)
                outer_block(half, 2, rows, g + o, stride_g, x + i, in, sums + o * in + i);
            else
                outer_block(half, 1, rows, g + o, stride_g, x + i, in, sums + o * in + i);
        }
        i += vecs * LANES;
    }
}
/* sums [out to OUT_ROWS][in] += g^T x over rows of words: g [rows][stride_g], x [rows][in], in a multiple of PAD. */
static void outer(int half, int64_t rows, const float *g, int64_t stride_g, int64_t out, const float *x, int64_t in,
                  float *sums) {
    if (half)
        outer_as(1, rows, g, stride_g, out, x, in, sums);
    else
        outer_as(0, rows, g, stride_g, out, x, in, sums);
}

/* A vector from place `at` of x, floats or halves. */
static inline __attribute__((always_inline)) vec load(int half, const float *x, int64_t at) {
#if HAS_HALF
    if (half) {
        __m256i words = _mm256_loadu_si256((const __m256i *)((const uint16_t *)x + at));
        return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
    }
#endif
    (void)half;
    return *(const vec *)(x + at);
}

/* sums [columns] += all rows of g [rows][columns], columns a multiple of LANES; by sums of sums too. */
static void add_rows(int half, const float *g, int64_t rows, int64_t columns, float *sums) {
    for (int64_t c = 0; c < columns; c += LANES) {
        vec total = {0};
        for (int64_t from = 0; from < rows; from += 16) {
            vec sum = {0};
            for (int64_t r = from; r < min(from + 16, rows); r++) sum += load(half, g, r * columns + c);
            total += sum;
        }
        *(vec *)(sums + c) += total;
    }
}

/* Whether `half` may be set. */
int loe_has_half(void) { return HAS_HALF; }

/* ---- forward ---- */

static int64_t forward_room_size(const Network *net) {
    return 2 * chunk_size(net) * widest(net) + corners_size(net) + list_size(net) + 3 * net->most_experts;
}
static int64_t bias_size(const Network *net) { return (net->levels + 1) * widest(net); }

/* Floats that loe_forward needs to work in. */
int64_t loe_forward_workspace(const Network *net) {
    return packed_start(net, net->levels + 1, 0) + bias_size(net) + padded_tiles(net, net->levels) +
           net->threads * forward_room_size(net);
}

/* The network at `points` points.
 *
 * coords [points, dim], x [points, in_features]; index [levels, points] and z [levels, points, pad(width)] are kept for
 * loe_backward, z may be null; out [points, out_features].
 */
void loe_forward(const Network *net, const float *coords, const float *x, uint16_t *index, float *z, float *out,
                 float *workspace) {
    const int64_t levels = net->levels, width = pad(net->width), size = chunk_size(net), most = widest(net);
    const int64_t in = net->in_features, channels = net->out_features;
    const int64_t chunks = (net->points + size - 1) / size;
    float *packed = workspace, *bias = packed + packed_start(net, levels + 1, 0);
    float *padded = bias + bias_size(net), *rooms = padded + padded_tiles(net, levels);
#pragma omp parallel num_threads(net->threads)
    {
        pad_tiles(net, thread_number(), thread_count(), padded);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < (levels + 1) * net->most_experts; k++) {
            const int64_t layer = k / net->most_experts, expert = k % net->most_experts;
            if (expert < experts(net, layer)) pack_expert(net, layer, expert, 0, packed);
            if (expert == 0 && !corners(net, layer)) {
                memset(bias + layer * most, 0, most * sizeof(float));
                memcpy(bias + layer * most, net->bias[layer], outputs(net, layer) * sizeof(float));
            }
        }
        float *here = rooms + thread_number() * forward_room_size(net), *next = here + size * most;
        const Corners at = corners_in(net, next + size * most);
        int32_t *list = (int32_t *)(next + size * most + corners_size(net)), *starts = list + list_size(net);
        int32_t *counts = starts + net->most_experts, *room = counts + net->most_experts;
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * size, rows = min(size, net->points - first);
            const float *input = x + first * in;
            for (int64_t level = 0; level < levels; level++) {
                const float *matrices = packed + packed_start(net, level, 0);
                const int64_t corner_count = corners(net, level);
                const Bias b = corner_count ? (Bias){tile_rows(net, level, padded), corner_count, at}
                                            : (Bias){.rows = bias + level * most};
                const int64_t matrix = packed_matrix(net, level, 0);
                const Left a = level == 0         ? (Left){input, in, in, 0}
                               : half(net, level) ? (Left){input, width / 2, width / 2, 1}
                                                  : (Left){input, width, net->width, 0};
                uint16_t *expert = index + level * net->points + first;
                float *kept = z ? z + (level * net->points + first) * width : 0;
                expert_index(net, level, coords + first * net->dim, rows, next, expert);
                if (experts(net, level) == 1)
                    list_all(rows, list, starts, counts);
                else
                    list_rows(expert, rows, experts(net, level), list, starts, counts, room);
                if (corner_count)
                    find_corners(net->bias_tile + level, net->dim, coords + first * net->dim, rows, at);
                int beyond = 0;
                for (int64_t e = 0; e < experts(net, level); e++)
                    beyond |= product(net->activation, net->parameter, list + starts[e], counts[e], a,
                                      matrices + e * matrix, width, b, kept, (Out){next, half(net, level + 1)});
                if (beyond) { /* rare: once more, without the fast sine */
                    for (int64_t e = 0; e < experts(net, level); e++)
                        product(PLAIN, 0, list + starts[e], counts[e], a, matrices + e * matrix, width, b, 0,
                                (Out){next, 0});
                    activate_exactly(net->parameter, next, rows * width, next, 0);
                    if (half(net, level + 1))
                        for (int64_t k = 0; k < rows * width; k++) ((uint16_t *)next)[k] = (uint16_t)to_half(next[k]);
                }
                input = next;
                float *swap = here;
                here = next, next = swap;
            }
            list_all(rows, list, starts, counts);
            product(PLAIN, 0, list, rows, (Left){input, width, net->width, 0}, packed + packed_start(net, levels, 0),
                    pad(channels), (Bias){.rows = bias + levels * most}, 0, (Out){next, 0});
            for (int64_t r = 0; r < rows; r++)
                cut_row(next + r * pad(channels), channels, out + (first + r) * channels);
        }
    }
}

/* ---- backward ---- */

/* Whether a layer's vectors are added up by threads that own them, from the rows of all points' gradients: threads' own
 * sums would take more memory than twice those rows. */
static int owned(const Network *net, int64_t layer) {
    return corners(net, layer) && net->threads * vectors(net, layer) > 2 * net->points;
}
static int64_t summed_vectors(const Network *net, int64_t layer) { return owned(net, layer) ? 0 : vectors(net, layer); }
/* Floats of one thread's sums: per layer the weight gradient [experts][out to OUT_ROWS][pad(in)] and the bias's
 * [vectors][pad(out)], where they are not owned. */
static int64_t sum_rows(int64_t out) { return (out + OUT_ROWS - 1) / OUT_ROWS * OUT_ROWS; }
static int64_t sums_start(const Network *net, int64_t layer) {
    int64_t start = 0;
    for (int64_t i = 0; i < layer; i++)
        start += experts(net, i) * sum_rows(outputs(net, i)) * pad(inputs(net, i)) +
                 summed_vectors(net, i) * pad(outputs(net, i));
    return start;
}
static int64_t corners_at(const Network *net) { return (2 * chunk_size(net) + 4 * GROUP) * widest(net); }
static int64_t lists_at(const Network *net) { return corners_at(net) + corners_size(net); }
static int64_t sums_at(const Network *net) { return lists_at(net) + list_size(net) + 3 * net->most_experts; }
/* The place of a layer's rows [points][pad(out)] behind all threads' rooms, which owners read. */
static int64_t owned_start(const Network *net, int64_t layer) {
    int64_t start = 0;
    for (int64_t i = 0; i < layer; i++) start += owned(net, i) ? net->points * pad(outputs(net, i)) : 0;
    return start;
}
static int64_t backward_room_size(const Network *net) { return sums_at(net) + sums_start(net, net->levels + 1); }

/* Floats that loe_backward needs to work in. */
int64_t loe_backward_workspace(const Network *net) {
    return packed_start(net, net->levels + 1, 1) + padded_tiles(net, net->levels) +
           net->threads * backward_room_size(net) + owned_start(net, net->levels);
}

/* act of the listed rows of z [.., columns] into value [rows][columns], act' into slope. */
static inline __attribute__((always_inline)) void activate_rows(Finish kind, float parameter, const int32_t *list,
                                                                int64_t rows, const float *z, int64_t columns,
                                                                float *value, float *slope) {
    ivec beyond = {0};
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c += LANES) {
            vec v, s;
            __builtin_prefetch(z + list[r + AHEAD] * columns + c); /* beyond the end of the list: any address will do */
            activate(kind, parameter, *(const vec *)(z + list[r] * columns + c), &v, &s, &beyond);
            *(vec *)(value + r * columns + c) = v;
            *(vec *)(slope + r * columns + c) = s;
        }
    }
    if (any(beyond))
        for (int64_t r = 0; r < rows; r++)
            activate_exactly(parameter, z + list[r] * columns, columns, value + r * columns, slope + r * columns);
}

/* The listed rows of x [.., n], filled up with zeros, into to [rows][columns]. */
static void copy_rows(const int32_t *list, int64_t rows, const float *x, int64_t n, int64_t columns, float *to) {
    for (int64_t r = 0; r < rows; r++) fill_row(x + list[r] * n, n, columns, to + r * columns);
}

#if HAS_HALF
/* Rows x [rows][columns] two by two into words [(rows + 1) / 2][columns], a missing last row as zeros; to may be x. */
static void pair_rows(const float *x, int64_t rows, int64_t columns, float *to) {
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t c = 0; c < columns; c += LANES) {
            vec second = r + 1 < rows ? *(const vec *)(x + (r + 1) * columns + c) : (vec){0};
            *(vec *)(to + r / 2 * columns + c) = pairs(halves(*(const vec *)(x + r * columns + c)), halves(second));
        }
}
/* The same of the listed rows of halves. */
static void pair_listed_rows(const int32_t *list, const float *x, int64_t rows, int64_t columns, float *to) {
    const uint16_t *from = (const uint16_t *)x;
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t c = 0; c < columns; c += LANES) {
            __m256i first = _mm256_loadu_si256((const __m256i *)(from + list[r] * columns + c)), second = {0};
            if (r + 1 < rows) second = _mm256_loadu_si256((const __m256i *)(from + list[r + 1] * columns + c));
            *(vec *)(to + r / 2 * columns + c) = pairs(first, second);
        }
}
#endif

/* sums [vectors][columns] += the shares of rows g [rows][columns], floats or halves. */
static void add_shares(int half, Corners at, int64_t corners, const float *g, int64_t rows, int64_t columns,
                       float *sums) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t column = 0; column < columns; column += VECS * LANES) {
            const int count = (int)min(VECS, (columns - column) / LANES);
            vec row[VECS];
            for (int v = 0; v < count; v++) row[v] = load(half, g, r * columns + column + v * LANES);
            for (int64_t c = 0; c < corners; c++) {
                float *to = sums + at.entry[c * at.stride + r] * columns + column;
                const float share = at.share[c * at.stride + r];
                if (count == VECS) {
#pragma GCC unroll 8
                    for (int v = 0; v < VECS; v++) *(vec *)(to + v * LANES) += share * row[v];
                } else
                    for (int v = 0; v < count; v++) *(vec *)(to + v * LANES) += share * row[v];
            }
        }
}

/* grad [vectors][out] of a tile, vectors from `from` to `to` alone: the shares of all rows g [points][pad(out)]. */
static void add_owned(const Network *net, int64_t level, const float *coords, Corners at, const float *g, int64_t from,
                      int64_t to, float *grad) {
    const int64_t out = outputs(net, level), words = half(net, level) ? pad(out) / 2 : pad(out), size = at.stride;
    const Tile *tile = net->bias_tile + level;
    memset(grad + from * out, 0, (to - from) * out * sizeof(float));
    for (int64_t first = 0; first < net->points; first += size) {
        const int64_t rows = min(size, net->points - first);
        find_corners(tile, net->dim, coords + first * net->dim, rows, at);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < tile->corners; c++) {
                const int64_t entry = at.entry[c * size + r];
                if (entry < from || entry >= to) continue;
                const float *row = g + (first + r) * words, share = at.share[c * size + r];
                float *sum = grad + entry * out;
                int64_t o = 0;
                for (; o + LANES <= out; o += LANES) *(vec *)(sum + o) += share * load(half(net, level), row, o);
                if (o == out) continue;
                const vec rest = load(half(net, level), row, o);
                for (int lane = 0; o + lane < out; lane++) sum[o + lane] += share * rest[lane];
            }
    }
}

/* grad_coords [rows, dim] += those of the shares of a tile [vectors][columns], from rows g. */
static void add_slopes(int half, Corners at, const Tile *tile, int64_t dim, const float *g, int64_t rows,
                       const float *vectors, int64_t columns, float *grad_coords) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < tile->corners; c++) {
            const float *vector = vectors + at.entry[c * at.stride + r] * columns;
            vec products = {0};
            float sum = 0;
            for (int64_t column = 0; column < columns; column += LANES)
                products += load(half, g, r * columns + column) * *(const vec *)(vector + column);
            for (int lane = 0; lane < LANES; lane++) sum += products[lane];
            for (int64_t d = 0; d < dim; d++) {
                float slope = c >> (dim - 1 - d) & 1 ? tile->alpha : -tile->alpha;
                for (int64_t other = 0; other < dim; other++) {
                    const float fraction = at.fraction[other * at.stride + r];
                    if (other != d) slope *= c >> (dim - 1 - other) & 1 ? fraction : 1 - fraction;
                }
                grad_coords[r * dim + d] += slope * sum;
            }
        }
}

/* Gradients from the output's, grad_out [points, out_features].
 *
 * coords, x, index and z as loe_forward took and left them. grad_coords [points, dim], by bias tiles alone, and grad_x
 * [points, in_features] may be null; grad_weight and grad_bias, [levels + 1] pointers, are both null or complete.
 */
void loe_backward(const Network *net, const float *coords, const float *x, const uint16_t *index, const float *z,
                  const float *grad_out, float *grad_coords, float *grad_x, float *const *grad_weight,
                  float *const *grad_bias, float *workspace) {
    const int64_t levels = net->levels, width = pad(net->width), size = chunk_size(net), most = widest(net);
    const int64_t in = net->in_features, channels = net->out_features;
    const int64_t chunks = (net->points + size - 1) / size, room_size = backward_room_size(net);
    const int64_t most_experts = net->most_experts;
    float *packed = workspace, *padded = packed + packed_start(net, levels + 1, 1);
    float *rooms = padded + padded_tiles(net, levels), *owned_rows = rooms + net->threads * room_size;
#pragma omp parallel num_threads(net->threads)
    {
        if (grad_coords) pad_tiles(net, thread_number(), thread_count(), padded);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < (levels + 1) * most_experts; k++)
            if (k % most_experts < experts(net, k / most_experts))
                pack_expert(net, k / most_experts, k % most_experts, 1, packed);
        float *room = rooms + thread_number() * room_size;
        float *grad = room, *before = grad + size * most; /* by a layer's product, and by that of the layer before */
        float *value = before + size * most, *slope = value + GROUP * most; /* of a group: its input and act' there, */
        float *mine = slope + GROUP * most;                                 /* and its rows of grad */
        const Corners at = corners_in(net, room + corners_at(net));
        int32_t *list = (int32_t *)(room + lists_at(net)), *starts = list + list_size(net);
        int32_t *counts = starts + most_experts, *next = counts + most_experts;
        float *sums = room + sums_at(net);
        memset(sums, 0, sums_start(net, levels + 1) * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const int64_t first = chunk * size, rows = min(size, net->points - first), dim = net->dim;
            if (grad_coords) memset(grad_coords + first * dim, 0, rows * dim * sizeof(float));
            for (int64_t r = 0; r < rows; r++)
                fill_row(grad_out + (first + r) * channels, channels, pad(channels), grad + r * pad(channels));
            for (int64_t layer = levels; layer >= 0; layer--) {
                const int64_t out = outputs(net, layer), columns = pad(inputs(net, layer));
                const float *input = layer == 0 ? x + first * in : z + ((layer - 1) * net->points + first) * width;
                const float *matrix =
                    packed_size(net, layer, 1) ? packed + packed_start(net, layer, 1) : net->weight[layer];
                const int is_half = half(net, layer);
                const Left a = is_half ? (Left){grad, pad(out) / 2, pad(out) / 2, 1} : (Left){grad, pad(out), out, 0};
                float *sum = sums + sums_start(net, layer);
                if (experts(net, layer) > 1)
                    list_rows(index + layer * net->points + first, rows, experts(net, layer), list, starts, counts,
                              next);
                else
                    list_all(rows, list, starts, counts);
                for (int64_t e = 0; e < experts(net, layer); e++) {
                    for (int64_t from = 0; from < counts[e]; from += GROUP) {
                        const int64_t group = min(GROUP, counts[e] - from);
                        const int32_t *part = list + starts[e] + from;
                        const int64_t filled = (group + ROWS - 1) / ROWS * ROWS;
                        /* What the layer got, and the activation's slope where that came from. */
                        if (layer == 0)
                            copy_rows(part, group, input, in, columns, value);
                        else if (net->activation == SINE)
                            activate_rows(SINE, net->parameter, part, filled, input, columns, value, slope);
                        else
                            activate_rows(LEAKY, net->parameter, part, filled, input, columns, value, slope);
                        if (grad_weight && !is_half) {
                            copy_rows(part, group, grad, pad(out), pad(out), mine);
                            outer(0, group, mine, pad(out), out, value, columns, sum);
                        }
#if HAS_HALF
                        if (grad_weight && is_half) {
                            pair_listed_rows(part, grad, group, pad(out), mine);
                            pair_rows(value, group, columns, value);
                            outer(1, (group + 1) / 2, mine, pad(out), out, value, columns, sum);
                        }
#endif
                        if (layer > 0)
                            product(SCALE, 0, part, group, a, matrix, columns, (Bias){0}, slope,
                                    (Out){before, half(net, layer - 1)});
                        else if (grad_x)
                            product(PLAIN, 0, part, group, a, matrix, columns, (Bias){0}, 0, (Out){before, 0});
                    }
                    sum += sum_rows(out) * columns;
                    matrix += packed_matrix(net, layer, 1);
                }
                if (corners(net, layer) && (grad_bias || grad_coords)) {
                    const Tile *tile = net->bias_tile + layer;
                    find_corners(tile, dim, coords + first * dim, rows, at);
                    if (grad_bias && owned(net, layer)) {
                        const int64_t words = is_half ? pad(out) / 2 : pad(out);
                        memcpy(owned_rows + owned_start(net, layer) + first * words, grad, rows * words * sizeof(float));
                    } else if (grad_bias)
                        add_shares(is_half, at, tile->corners, grad, rows, pad(out), sum);
                    if (grad_coords && tile->corners > 1)
                        add_slopes(is_half, at, tile, dim, grad, rows, tile_rows(net, layer, padded), pad(out),
                                   grad_coords + first * dim);
                } else if (grad_bias)
                    add_rows(is_half, grad, rows, pad(out), sum);
                float *swap = grad;
                grad = before, before = swap;
            }
            if (grad_x)
                for (int64_t r = 0; r < rows; r++) cut_row(grad + r * pad(in), in, grad_x + (first + r) * in);
        }
        /* Add up the threads' sums, one layer's output row after the other. */
        const int threads = thread_count();
        for (int64_t layer = 0; layer <= levels && grad_weight; layer++) {
            const int64_t out = outputs(net, layer), depth = inputs(net, layer), columns = pad(depth);
            const float *from = rooms + sums_at(net) + sums_start(net, layer);
#pragma omp for schedule(static) nowait
            for (int64_t k = 0; k < experts(net, layer) * out; k++) {
                const float *row = from + (k / out * sum_rows(out) + k % out) * columns;
                float *to = grad_weight[layer] + k * depth;
                memcpy(to, row, depth * sizeof(float));
                for (int t = 1; t < threads; t++)
                    for (int64_t i = 0; i < depth; i++) to[i] += row[t * room_size + i];
            }
            from += experts(net, layer) * sum_rows(out) * columns;
#pragma omp for schedule(static) nowait
            for (int64_t k = 0; k < summed_vectors(net, layer); k++) {
                float *to = grad_bias[layer] + k * out;
                memcpy(to, from + k * pad(out), out * sizeof(float));
                for (int t = 1; t < threads; t++)
                    for (int64_t o = 0; o < out; o++) to[o] += from[t * room_size + k * pad(out) + o];
            }
            if (owned(net, layer)) {
                const int64_t count = vectors(net, layer), part = (count + threads - 1) / threads;
                const int64_t start = min(count, thread_number() * part);
                add_owned(net, layer, coords, at, owned_rows + owned_start(net, layer), start, min(count, start + part),
                          grad_bias[layer]);
            }
        }
    }
}

/* ---- Muon: one matrix after the other in a core's cache, padded with zeros to multiples of PAD both ways ---- */

/* A block of PAD x PAD, in rows of `stride`, transposed into rows of `stride_to`. */
static void transpose_block(const float *x, int64_t stride, float *to, int64_t stride_to) {
#if LANES == PAD
    /* Four times rows k and k + 8 interleaved into rows 2 k and 2 k + 1. */
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    __m512 row[PAD], next[PAD];
#pragma GCC unroll 16
    for (int r = 0; r < PAD; r++) row[r] = _mm512_loadu_ps(x + r * stride);
#pragma GCC unroll 4
    for (int pass = 0; pass < 4; pass++) {
#pragma GCC unroll 8
        for (int k = 0; k < PAD / 2; k++) {
            next[2 * k] = _mm512_permutex2var_ps(row[k], low, row[k + PAD / 2]);
            next[2 * k + 1] = _mm512_permutex2var_ps(row[k], high, row[k + PAD / 2]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < PAD; r++) row[r] = next[r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < PAD; r++) _mm512_storeu_ps(to + r * stride_to, row[r]);
#else
    for (int64_t c = 0; c < PAD; c++)
        for (int64_t r = 0; r < PAD; r++) to[c * stride_to + r] = x[r * stride + c];
#endif
}
static void transpose(const float *x, int64_t rows, int64_t columns, float *to) {
    for (int64_t r = 0; r < rows; r += PAD)
        for (int64_t c = 0; c < columns; c += PAD) transpose_block(x + r * columns + c, columns, to + c * rows + r, rows);
}

/* MUON_ROWS rows and `vecs` vectors of out = alpha base + beta a b, or a b without a base: word (r, k) of a is at
 * a[r * row + k * word]; b [depth][columns] and a are words, of halves pairs along k. */
static inline __attribute__((always_inline)) void muon_block(int half, int vecs, int64_t depth, const float *a,
                                                             int64_t row, int64_t word, const float *b, int64_t columns,
                                                             float alpha, const float *base, float beta, float *out) {
    vec sum[MUON_ROWS][MUON_VECS] = {0};
    for (int64_t k = 0; k < depth; k++) {
        vec right[MUON_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) right[v] = *(const vec *)(b + k * columns + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < MUON_ROWS; r++) {
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) sum[r][v] = multiply_add(half, sum[r][v], a[r * row + k * word], right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MUON_ROWS; r++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            const int64_t at = r * columns + v * LANES;
            if (base) sum[r][v] = alpha * *(const vec *)(base + at) + beta * sum[r][v];
            *(vec *)(out + at) = sum[r][v];
        }
    }
}
/* MUON_ROWS rows of the same from column `from` to the last. */
static inline __attribute__((always_inline)) void muon_rows(int half, int64_t depth, const float *a, int64_t row,
                                                            int64_t word, const float *b, int64_t from, int64_t columns,
                                                            float alpha, const float *base, float beta, float *out) {
    for (int64_t c = from; c < columns;) {
        const float *under = base ? base + c : 0;
        const int wide = columns - c >= MUON_VECS * LANES;
        if (wide)
            muon_block(half, MUON_VECS, depth, a, row, word, b + c, columns, alpha, under, beta, out + c);
        else
            muon_block(half, 1, depth, a, row, word, b + c, columns, alpha, under, beta, out + c);
        c += wide ? MUON_VECS * LANES : LANES;
    }
}
/* out [n][n] = alpha base + beta x^T x, or x^T x, from words x [depth][n] and a symmetric base: blocks on and above the
 * diagonal are computed, those below it are their mirror image. */
static inline __attribute__((always_inline)) void gram(int half, int64_t depth, const float *x, int64_t n, float alpha,
                                                       const float *base, float beta, float *out) {
    for (int64_t r = 0; r < n; r += MUON_ROWS)
        muon_rows(half, depth, x + r, 1, n, x, r / PAD * PAD, n, alpha, base ? base + r * n : 0, beta, out + r * n);
    for (int64_t r = 0; r < n; r += PAD)
        for (int64_t c = r + PAD; c < n; c += PAD) transpose_block(out + r * n + c, n, out + c * n + r, n);
}
/* out [rows][n] = alpha base + x s, of words x [rows][depth] and s [depth][n]. */
static inline __attribute__((always_inline)) void advance(int half, int64_t rows, int64_t depth, const float *x,
                                                          const float *s, int64_t n, float alpha, const float *base,
                                                          float *out) {
    for (int64_t r = 0; r < rows; r += MUON_ROWS)
        muon_rows(half, depth, x + r * depth, depth, 1, s, 0, n, alpha, base + r * n, 1, out + r * n);
}

static float squared_norm(const float *x, int64_t n) {
    vec squares = {0};
    float sum = 0;
    for (int64_t k = 0; k < n; k += LANES) squares += *(const vec *)(x + k) * *(const vec *)(x + k);
    for (int lane = 0; lane < LANES; lane++) sum += squares[lane];
    return sum;
}

#if HAS_HALF
/* Rounds n floats x, and writes them as halves too. */
static void round_to_half(float *x, int64_t n, float *to) {
    for (int64_t k = 0; k < n; k += LANES) {
        store(1, to, k, *(const vec *)(x + k));
        *(vec *)(x + k) = load(1, to, k);
    }
}
#endif

/* Floats of a thread's room: the padded matrix twice, and three symmetric ones of its shorter side. */
static int64_t muon_room_size(int64_t rows, int64_t columns) {
    const int64_t shorter = pad(min(rows, columns));
    return 2 * pad(rows) * pad(columns) + 3 * shorter * shorter;
}

/* X <- X / (|X| + 1e-7), then X <- a X + X S with S = b G + c G^2, G = X^T X, of the matrix at the start of room; a wide
 * one is transposed for as long. With `half`, X, G and S are rounded to halves wherever they are used, so that a step is
 * exact for the rounded X and G (rounding the products' alone would double the error); sums are fp32. Returns where in
 * room the padded result lies. */
static float *newton_schulz(int is_half, int64_t iterations, int64_t rows, int64_t columns, float *room) {
    const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    const int wide = pad(rows) < pad(columns);
    const int64_t m = pad(wide ? columns : rows), n = pad(wide ? rows : columns);
    float *x = room, *y = x + m * n, *g = y + m * n, *s = g + n * n, *swap;
    const float norm = sqrtf(squared_norm(x, m * n)) + 1e-7f;
    for (int64_t k = 0; k < m * n; k += LANES) *(vec *)(x + k) /= norm;
    if (wide) {
        transpose(x, n, m, y);
        swap = x, x = y, y = swap;
    }
    for (int64_t i = 0; i < iterations; i++) {
#if HAS_HALF
        if (is_half) {
            float *in_rows = y + m * n / 2, *g_pairs = s + n * n;
            round_to_half(x, m * n, in_rows);
            pair_rows(x, m, n, y);
            gram(1, m / 2, y, n, 0, 0, 0, g);
            round_to_half(g, n * n, g_pairs);
            pair_rows(g, n, n, g_pairs);
            gram(1, n / 2, g_pairs, n, b, g, c, s);
            pair_rows(s, n, n, s);
            advance(1, m, n / 2, in_rows, s, n, a, x, x);
            continue;
        }
#endif
        gram(0, m, x, n, 0, 0, 0, g);
        gram(0, n, g, n, b, g, c, s);
        advance(0, m, n, x, s, n, a, x, y);
        swap = x, x = y, y = swap;
    }
    (void)is_half;
    if (!wide) return x;
    transpose(x, m, n, y);
    return y;
}

/* Floats that loe_orthogonalize and loe_muon need to work in. */
int64_t loe_muon_workspace(int64_t rows, int64_t columns, int64_t threads) {
    return threads * muon_room_size(rows, columns);
}

/* Newton-Schulz iterations of matrices [count, rows, columns] into out, of the same shape. */
void loe_orthogonalize(int64_t count, int64_t rows, int64_t columns, int64_t iterations, int64_t is_half,
                       int64_t threads, const float *matrices, float *out, float *workspace) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < count; k++) {
        float *room = workspace + thread_number() * muon_room_size(rows, columns);
        memset(room, 0, pad(rows) * pad(columns) * sizeof(float));
        for (int64_t r = 0; r < rows; r++)
            memcpy(room + r * pad(columns), matrices + (k * rows + r) * columns, columns * sizeof(float));
        const float *found = newton_schulz((int)is_half, iterations, rows, columns, room);
        for (int64_t r = 0; r < rows; r++)
            memcpy(out + (k * rows + r) * columns, found + r * pad(columns), columns * sizeof(float));
    }
}

typedef struct {
    int64_t stacks, rows, columns, iterations, half, threads;
    double momentum, beta2, eps, step; /* step: what an orthogonal matrix is multiplied by before it is added */
    const int64_t *ends;               /* [stacks]: number of matrices up to the end of each stack */
    const float *const *grad;          /* [stacks]: [matrices, rows, columns] */
    float *const *weight, *const *momenta; /* likewise */
    float *const *row_scale;           /* [stacks]: [matrices, rows] */
} Muon;

/* weight += step * update, which is scaled row by row if beta2 is not 0; update is padded. */
static void muon_add(const Muon *muon, const float *update, float *row_scale, float *weight) {
    const int64_t rows = muon->rows, columns = muon->columns, stride = pad(columns);
    const float eps = (float)muon->eps, decay = (float)(1 - muon->beta2);
    float squares = 0, scaled_squares = 0, step = (float)muon->step;
    for (int64_t r = 0; r < rows && muon->beta2 > 0; r++) {
        const float square = squared_norm(update + r * stride, stride);
        row_scale[r] += decay * (square / columns - row_scale[r]);
        const float scale = 1 / (sqrtf(row_scale[r]) + eps);
        squares += square, scaled_squares += square * scale * scale;
    }
    if (muon->beta2 > 0) step *= sqrtf(squares) / (sqrtf(scaled_squares) + eps);
    for (int64_t r = 0; r < rows; r++) {
        const float factor = muon->beta2 > 0 ? step / (sqrtf(row_scale[r]) + eps) : step;
        for (int64_t c = 0; c < columns; c++) weight[r * columns + c] += factor * update[r * stride + c];
    }
}

/* One step of all stacks: momenta, row_scale and weight are updated. */
void loe_muon(const Muon *muon, float *workspace) {
    const int64_t rows = muon->rows, columns = muon->columns;
    const float momentum = (float)muon->momentum, rest = (float)(1 - muon->momentum);
#pragma omp parallel for schedule(dynamic) num_threads(muon->threads)
    for (int64_t k = 0; k < muon->ends[muon->stacks - 1]; k++) {
        int64_t stack = 0;
        while (k >= muon->ends[stack]) stack++;
        const int64_t matrix = stack == 0 ? k : k - muon->ends[stack - 1], at = matrix * rows * columns;
        const float *grad = muon->grad[stack] + at;
        float *average = muon->momenta[stack] + at;
        float *room = workspace + thread_number() * muon_room_size(rows, columns);
        memset(room, 0, pad(rows) * pad(columns) * sizeof(float));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++) {
                const float g = grad[r * columns + c];
                const float m = average[r * columns + c] + rest * (g - average[r * columns + c]);
                average[r * columns + c] = m;
                room[r * pad(columns) + c] = g + momentum * (m - g);
            }
        const float *update = newton_schulz((int)muon->half, muon->iterations, rows, columns, room);
        muon_add(muon, update, muon->row_scale[stack] + matrix * rows, muon->weight[stack] + at);
    }
}

#include "grid.c"
#include "rays.c"
#include "fields.c"

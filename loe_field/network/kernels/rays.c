/* Samples along rays on a CPU: a part of cpu.c, which includes it.
 *
 * Their places in the unit cube, their weights in the picture, new samples where those are large, the losses between two
 * sets of samples, each in one pass over the rays. Threads share the rays; no sum goes over several, so that a result
 * does not depend on the number of threads. Sums along a ray are in double precision.
 */

typedef struct {
    int64_t rays, samples, threads;
    int64_t row_starts, row_ends; /* numbers from a ray's starts to the next one's; 0: all rays have the same */
    int64_t channels, beside;     /* numbers of a sample: what the network gives, and what stands before its features */
    const float *starts, *ends;   /* [rays, samples]: where a sample begins and ends */
} Samples;

static inline vec chosen(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* e^x to about one unit in the last place: x = n ln 2 + r, a polynomial in r, and 2^n in two factors, so that results
 * below the smallest normal number and infinity come out as they should. */
static inline __attribute__((always_inline)) vec exponential(vec x) {
    const float round = 12582912.0f; /* see sine_cosine */
    const vec lowest = (vec){0} - 104.0f, highest = (vec){0} + 89.0f;
    x = chosen(x < lowest, lowest, x);
    x = chosen(x > highest, highest, x);
    const vec shifted = x * 1.44269504f + round, n = shifted - round;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = r * 1.98412698e-4f + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const ivec whole = (ivec)shifted - (ivec)((vec){0} + round), first = whole >> 1, second = whole - first;
    return p * (vec)((first + 127) << 23) * (vec)((second + 127) << 23);
}

/* coords [rays, samples, 3] in the unit cube, clamped to it, and whether each lies inside: the middles of the samples on
 * rays [rays, 3], in the box low, low + size, or contracted into the cube of half side 2 (low is null). */
void loe_ray_coords(const Samples *rays, const float *origins, const float *directions, const float *low,
                    const float *size, float *coords, uint8_t *inside) {
#pragma omp parallel for schedule(static) num_threads(rays->threads)
    for (int64_t r = 0; r < rays->rays; r++) {
        const float *o = origins + 3 * r, *d = directions + 3 * r;
        const float *starts = rays->starts + r * rays->row_starts, *ends = rays->ends + r * rays->row_ends;
        float *to = coords + 3 * r * rays->samples;
        for (int64_t k = 0; k < rays->samples; k++, to += 3) {
            const float middle = (starts[k] + ends[k]) / 2;
            float p[3], largest = 1;
            int within = 1;
            for (int a = 0; a < 3; a++) {
                p[a] = o[a] + d[a] * middle;
                largest = fabsf(p[a]) > largest ? fabsf(p[a]) : largest;
            }
            const float shrink = low ? 0 : (2 - 1 / largest) / largest;
            for (int a = 0; a < 3; a++) {
                const float x = low ? (p[a] - low[a]) / size[a] : (p[a] * shrink + 2) / 4;
                within &= x > 0 && x < 1;
                to[a] = x < 0 ? 0 : x > 1 ? 1 : x;
            }
            inside[r * rays->samples + k] = (uint8_t)within;
        }
    }
}

/* LANES samples of a ray from `k` on, or fewer: the logarithms of their densities, what these are multiplied with (their
 * lengths, 0 outside of the scene) and the products, the samples' optical depths. */
static inline __attribute__((always_inline)) void depths(const Samples *rays, const float *encoded,
                                                         const uint8_t *inside, int64_t r, int64_t k, vec *logarithm,
                                                         vec *length, vec *depth) {
    const float *starts = rays->starts + r * rays->row_starts, *ends = rays->ends + r * rays->row_ends;
    const int64_t count = min(LANES, rays->samples - k), at = r * rays->samples + k;
    ivec within = {0};
    *logarithm = *length = (vec){0};
    for (int64_t lane = 0; lane < count; lane++) {
        (*logarithm)[lane] = encoded[(at + lane) * rays->channels];
        (*length)[lane] = ends[k + lane] - starts[k + lane];
        within[lane] = -(int32_t)inside[at + lane];
    }
    *length = (vec)((ivec)*length & within);
    *depth = (vec)((ivec)(exponential(*logarithm) * *length) & within);
}

/* weights [rays, samples] from encoded [rays, samples, channels], whose first number is the logarithm of a density; NaN
 * becomes 0. x [rays, samples, beside + channels - 1], if wanted: prefix [rays, beside], then the other numbers. */
void loe_ray_weights(const Samples *rays, const float *encoded, const uint8_t *inside, const float *prefix,
                     float *weights, float *x) {
    const int64_t features = rays->channels - 1, beside = rays->beside;
#pragma omp parallel for schedule(static) num_threads(rays->threads)
    for (int64_t r = 0; r < rays->rays; r++) {
        double sum = 0;
        for (int64_t k = 0; k < rays->samples; k += LANES) {
            vec logarithm, length, depth, before;
            depths(rays, encoded, inside, r, k, &logarithm, &length, &depth);
            for (int lane = 0; lane < LANES; lane++) before[lane] = (float)sum, sum += depth[lane];
            vec weight = (1 - exponential(-depth)) * exponential(-before);
            weight = (vec)((ivec)weight & (weight == weight));
            const int64_t count = min(LANES, rays->samples - k);
            memcpy(weights + r * rays->samples + k, &weight, count * sizeof(float));
        }
        for (int64_t k = 0; k < rays->samples && x; k++) {
            const int64_t at = r * rays->samples + k;
            float *to = x + at * (beside + features);
            memcpy(to, prefix + r * beside, beside * sizeof(float));
            memcpy(to + beside, encoded + at * rays->channels + 1, features * sizeof(float));
        }
    }
}

/* The gradient of encoded from those of weights and x (null: it has none). That of e^l is e^l with l within +-15, as the
 * host has it. */
void loe_ray_weights_backward(const Samples *rays, const float *encoded, const uint8_t *inside, const float *weights,
                              const float *grad_weights, const float *grad_x, float *grad) {
    const int64_t features = rays->channels - 1, beside = rays->beside;
#pragma omp parallel for schedule(static) num_threads(rays->threads)
    for (int64_t r = 0; r < rays->rays; r++) {
        const float *weight = weights + r * rays->samples, *g = grad_weights + r * rays->samples;
        double sum = 0, behind = 0;
        for (int64_t k = 0; k < rays->samples; k++) behind += (double)g[k] * weight[k];
        for (int64_t k = 0; k < rays->samples; k += LANES) {
            const vec largest = (vec){0} + 15.0f;
            vec logarithm, length, depth, through, own = {0}, rest = {0};
            depths(rays, encoded, inside, r, k, &logarithm, &length, &depth);
            const int64_t count = min(LANES, rays->samples - k), at = r * rays->samples + k;
            for (int lane = 0; lane < LANES; lane++) sum += depth[lane], through[lane] = (float)sum;
            for (int64_t lane = 0; lane < count; lane++) {
                behind -= (double)g[k + lane] * weight[k + lane];
                own[lane] = g[k + lane], rest[lane] = (float)behind;
            }
            logarithm = chosen(logarithm > largest, largest, chosen(logarithm < -largest, -largest, logarithm));
            const vec slope = (own * exponential(-through) - rest) * length * exponential(logarithm);
            for (int64_t lane = 0; lane < count; lane++) grad[(at + lane) * rays->channels] = slope[lane];
        }
        for (int64_t k = 0; k < rays->samples; k++) {
            const int64_t at = r * rays->samples + k;
            float *to = grad + at * rays->channels + 1;
            if (grad_x)
                memcpy(to, grad_x + at * (beside + features) + beside, features * sizeof(float));
            else
                memset(to, 0, features * sizeof(float));
        }
    }
}

/* New edges [rays, count] where the distribution of weights [rays, samples] + padding over edges [rays, samples + 1] has
 * its quantiles u [count], ascending, plus jitter [rays] (null: none). */
void loe_ray_resample(int64_t rays, int64_t samples, int64_t count, int64_t threads, double padding,
                      const float *weights, const float *edges, const float *u, const float *jitter, float *out) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rays; r++) {
        const float *weight = weights + r * samples, *edge = edges + r * (samples + 1);
        double all = 0;
        for (int64_t k = 0; k < samples; k++) all += weight[k] + (float)padding;
        const double part = 1 / all;
        /* The cell [low, high) of the distribution in which the quantile lies. */
        int64_t cell = 0;
        double sum = weight[0] + (float)padding;
        float low = 0, high = (float)(sum * part);
        for (int64_t k = 0; k < count; k++) {
            const float at = u[k] + (jitter ? jitter[r] : 0);
            while (at >= high && cell < samples) {
                low = high, cell++;
                if (cell < samples) sum += weight[cell] + (float)padding, high = (float)(sum * part);
            }
            if (cell >= samples)
                out[r * count + k] = edge[samples];
            else {
                const float t = high > low ? (at - low) / (high - low) : 0;
                out[r * count + k] = edge[cell] + (t < 0 ? 0 : t > 1 ? 1 : t) * (edge[cell + 1] - edge[cell]);
            }
        }
    }
}

/* loss [rays]: the sum over samples of max(w - bound, 0)^2 / (w + eps), the bound being the sum of all `proposed` weights
 * whose intervals a sample's overlaps; grad [rays, proposed], if wanted: its gradient for those. */
void loe_ray_interlevel(int64_t rays, int64_t samples, int64_t proposed, int64_t threads, double eps,
                        const float *edges, const float *weights, const float *proposed_edges,
                        const float *proposed_weights, float *loss, float *grad) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rays; r++) {
        const float *c = edges + r * (samples + 1), *w = weights + r * samples;
        const float *cp = proposed_edges + r * (proposed + 1), *wp = proposed_weights + r * proposed;
        double below[proposed + 1], change[proposed + 1], sum = 0;
        below[0] = 0;
        for (int64_t k = 0; k < proposed; k++) below[k + 1] = below[k] + wp[k];
        memset(change, 0, sizeof change);
        int64_t low = 0, high = 0;
        for (int64_t k = 0; k < samples; k++) {
            /* Edges ascend, but for rounding. */
            while (low < proposed - 1 && cp[low + 1] <= c[k]) low++;
            while (low > 0 && cp[low] > c[k]) low--;
            while (high < proposed - 1 && cp[high + 1] <= c[k + 1]) high++;
            while (high > 0 && cp[high] > c[k + 1]) high--;
            const double over = w[k] - (below[high + 1] - below[low]);
            if (!(over > 0)) continue;
            const double scaled = over / (w[k] + eps);
            sum += over * scaled;
            change[low] -= 2 * scaled, change[high + 1] += 2 * scaled;
        }
        loss[r] = (float)sum;
        sum = 0;
        for (int64_t k = 0; k < proposed && grad; k++) sum += change[k], grad[r * proposed + k] = (float)sum;
    }
}

/* loss [rays]: the sum over pairs of samples of w w' |m - m'|, m being their middles, plus a third of the sum of w^2
 * times their lengths (Mip-NeRF 360, Eq. 15), in linear time; grad [rays, samples], if wanted: its gradient for w. */
void loe_ray_distortion(int64_t rays, int64_t samples, int64_t threads, const float *edges, const float *weights,
                        float *loss, float *grad) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rays; r++) {
        const float *c = edges + r * (samples + 1), *w = weights + r * samples;
        double before[samples]; /* the sum of w' (m - m') over the samples before each */
        double sum = 0, all = 0, total = 0;
        for (int64_t k = 0; k < samples; k++) {
            if (k > 0) sum += all * 0.5 * ((double)c[k + 1] - c[k - 1]);
            before[k] = sum, all += w[k];
        }
        sum = all = 0;
        for (int64_t k = samples - 1; k >= 0; k--) {
            if (k < samples - 1) sum += all * 0.5 * ((double)c[k + 2] - c[k]);
            all += w[k];
            const double apart = before[k] + sum, length = ((double)c[k + 1] - c[k]) * w[k] / 3;
            total += w[k] * (apart + length);
            if (grad) grad[r * samples + k] = (float)(2 * (apart + length));
        }
        loss[r] = (float)total;
    }
}

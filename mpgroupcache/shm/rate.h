/* How often a key is asked for: a count that decays, in eight bytes. No state but those, and no clock: time is told.
 *
 * What Go groupcache names minute_qps is here the mean of a key's requests per second since it came into the cache, in
 * which a request weighs half as much for each half life that has gone by since:
 *
 *     sum of 2^(-age of a request / half life)  /  integral of 2^(-t / half life) for t from 0 to the entry's age
 *
 * The divisor is what makes a young entry's rate unbiased. Both are kept without an update for each moment that passes:
 * a request at `now` is counted as 2^((now - since) / half life), where `since` is when the entry came, so that the sum
 * never has to decay, and dividing by the growth of that weight up to now decays and unbiases in one.
 */
#ifndef MPGROUPCACHE_RATE_H
#define MPGROUPCACHE_RATE_H

#include <stdint.h>
#include <string.h>

#define MGC_RATE_SECOND 16u                     /* units of time; 32 bits of them are 8 years */
#define MGC_RATE_HALF_LIFE (40u * MGC_RATE_SECOND) /* a time constant of 58 s: Go's name speaks of a minute */
/* An entry counts as at least this old: two requests in its first second say little about a minute. */
#define MGC_RATE_YOUNGEST (10u * MGC_RATE_SECOND)
/* `since` is moved up when weights have grown to 2^64; what lies further back than 2^-20 of the sum is nothing. A sum
 * that is 2^24 times the weight of one more request takes no more: a rate of 290 000/s, if touches came one by one. */
#define MGC_RATE_MOVE (64u * MGC_RATE_HALF_LIFE)
#define MGC_RATE_OLDEST (20u * MGC_RATE_HALF_LIFE)

struct mgc_rate {
    float sum;
    uint32_t since;
};

/* 2^(time / half life), to some 1e-6 of itself; `time` is less than 1000 half lives. */
static inline double mgc_rate_weight(uint32_t time) {
    uint64_t bits = (uint64_t)(time / MGC_RATE_HALF_LIFE + 1023) << 52; /* of the double 2^n */
    double whole, x = (double)(time % MGC_RATE_HALF_LIFE) / MGC_RATE_HALF_LIFE;
    memcpy(&whole, &bits, sizeof whole);
    return whole * (1 + x * (0.693147181 + x * (0.240226507 + x * (0.0555041087 + x * (0.00961812911 +
                    x * (0.00133335581 + x * (0.000154035304 + x * 0.0000152527338)))))));
}

static inline struct mgc_rate mgc_rate_begin(uint32_t now) { return (struct mgc_rate){0, now}; }

/* Counts requests; one that stands for others that were not seen counts as many. */
static inline void mgc_rate_count(struct mgc_rate *rate, double requests, uint32_t now) {
    if (now - rate->since >= MGC_RATE_MOVE) {
        uint32_t moved = now - MGC_RATE_OLDEST - rate->since;
        rate->sum = moved < 200 * MGC_RATE_HALF_LIFE ? (float)(rate->sum / mgc_rate_weight(moved)) : 0;
        rate->since += moved;
    }
    rate->sum = (float)(rate->sum + requests * mgc_rate_weight(now - rate->since));
}

/* Requests per second. */
static inline double mgc_rate_qps(const struct mgc_rate *rate, uint32_t now) {
    const double time_constant = MGC_RATE_HALF_LIFE / 0.6931471805599453 / MGC_RATE_SECOND;
    uint32_t age = now - rate->since;
    if (age < MGC_RATE_YOUNGEST)
        age = MGC_RATE_YOUNGEST;
    return age < 200 * MGC_RATE_HALF_LIFE ? rate->sum / (time_constant * (mgc_rate_weight(age) - 1)) : 0;
}

/* A rate to five binary digits, 3 %: advice needs no more, and answers that say the same can be made once. */
static inline double mgc_rate_round(double qps) {
    uint64_t bits;
    memcpy(&bits, &qps, sizeof bits);
    bits &= ~((1ull << 47) - 1);
    memcpy(&qps, &bits, sizeof qps);
    return qps;
}

#endif

/* One group's arena, as the coordinator uses it: made, filled, looked into, retired. */
#ifndef MPGROUPCACHE_ARENA_H
#define MPGROUPCACHE_ARENA_H

#include "space.h"

struct mgc_reservation {
    uint64_t offset;
    uint32_t slot;
    uint8_t *value;
    uint64_t length;
};

struct mgc_arena_options {
    uint32_t arena, incarnation;
    uint64_t budget, max_entry, seed;
    uint64_t reserve;   /* bytes that it leaves free when it grows, but for its first two pages */
    uint32_t checksums; /* 1: of values, too */
    uint8_t boot_id[16];
};

/* The private half of a writer that has nothing yet. */
void mgc_arena_begin(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control,
                     const struct mgc_plan *plan, uint64_t budget, uint64_t max_entry);

/* Formats an arena of mgc_arena_size(). 0, or a negative errno: ENOSPC when not even its first pages can be committed. */
int mgc_arena_format(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control,
                     const struct mgc_arena_options *options);
/* Tells attached workers to let go. The segment may be unlinked afterwards. */
void mgc_arena_retire(struct mgc_arena *arena);
void mgc_arena_close(struct mgc_arena *arena);

/* Makes room for an entry and fills in its key. The value is the caller's to fill; then publish or abandon. */
int mgc_arena_reserve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t value_length, uint32_t list,
                      struct mgc_reservation *reservation);
/* Publishes, in place of the key's entry if there is one; then the key's rate goes on. */
void mgc_arena_publish(struct mgc_arena *arena, const struct mgc_reservation *reservation);
void mgc_arena_abandon(struct mgc_arena *arena, const struct mgc_reservation *reservation);

/* The coordinator's own lookup; a find is a touch. Returns 0 or 1. The bytes are good until the next call. */
int mgc_arena_find(struct mgc_arena *arena, const uint8_t *key, size_t key_length, const uint8_t **value,
                   uint64_t *value_length);
/* Find for a peer's request. If the key is there it counts as one, as a hit, and in the key's rate, which is told to 3 %. */
int mgc_arena_serve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, const uint8_t **value,
                    uint64_t *value_length, double *minute_qps);
/* A key's gets per second of all workers and peers, as of the last drain; 0 where it is not cached. Not a touch. */
double mgc_arena_minute_qps(const struct mgc_arena *arena, const uint8_t *key, size_t key_length);
int mgc_arena_remove(struct mgc_arena *arena, const uint8_t *key, size_t key_length);

/* Frees what was in limbo and is no longer pinned. */
void mgc_arena_sweep(struct mgc_arena *arena);

#endif

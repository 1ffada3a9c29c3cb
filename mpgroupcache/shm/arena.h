/* One group's arena, as the coordinator uses it: made, filled, looked into, retired. */
#ifndef MPGROUPCACHE_ARENA_H
#define MPGROUPCACHE_ARENA_H

#include "space.h"

#define MGC_LONGEST_PAUSE (86400ll * 1000000000) /* ns */

struct mgc_traits { /* of a value that is put */
    uint32_t flags;          /* of its block */
    uint64_t version;        /* from mgc_new_version(); 0: the next */
    uint64_t owners_version; /* with MGC_COPY; 0: it gave none */
    int64_t fresh, dead;     /* with MGC_AGED: ns from its publication on; MGC_EVER; less than 0: since then */
};

struct mgc_reservation {
    uint64_t offset;
    uint32_t slot;
    uint8_t *value;
    uint64_t length;
    int64_t fresh, dead;
};

struct mgc_found {
    const uint8_t *value; /* good until the next call */
    uint64_t length;
    uint64_t version;    /* of a copy its owner's, if that gave one */
    uint32_t flags;
    int64_t fresh, dead; /* ns that are left, less than 0: that have passed; MGC_EVER: for ever */
    int refresh_due;     /* it is stale, and nobody is refreshing it or has just failed to */
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

/* A number for a value, which no other one has in the life of its group. It is spent then. */
uint64_t mgc_new_version(struct mgc_arena *arena);

/* Makes room for an entry and fills in its key. The value is the caller's to fill; then publish or abandon. */
int mgc_arena_reserve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t value_length,
                      const struct mgc_traits *traits, struct mgc_reservation *reservation);
/* Publishes, in place of the key's entry if there is one; then the key's rate goes on. Returns 0 where the cache was cleared
 * since the reservation, which is abandoned then. */
int mgc_arena_publish(struct mgc_arena *arena, const struct mgc_reservation *reservation);
void mgc_arena_abandon(struct mgc_arena *arena, const struct mgc_reservation *reservation);

/* The coordinator's own lookup of what is not dead; it is a touch. Returns 0 or 1. */
int mgc_arena_find(struct mgc_arena *arena, const uint8_t *key, size_t key_length, struct mgc_found *found);
/* The same for what is dead and kept, too, and no touch. */
int mgc_arena_find_kept(struct mgc_arena *arena, const uint8_t *key, size_t key_length, struct mgc_found *found);
/* Find for a peer's request. If the key is there it counts as one, as a hit, and in the key's rate, which is told to 3 %. */
int mgc_arena_serve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, struct mgc_found *found,
                    double *minute_qps);
/* A key's gets per second of all workers and peers, as of the last drain; 0 where it is not cached. Not a touch. */
double mgc_arena_minute_qps(const struct mgc_arena *arena, const uint8_t *key, size_t key_length);

/* Drops a key's entry, if it has this version; 0: any. Returns whether there was a value that was not dead. */
int mgc_arena_remove(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t version);

/* Gives an entry that is not dead other ages: in their place, or with a block that has one; then there may be no room, and
 * the entry is gone. Value and version stay. Returns whether it has them. */
int mgc_arena_touch(struct mgc_arena *arena, const uint8_t *key, size_t key_length, int64_t fresh, int64_t dead);
/* No refresh of an entry is due before `pause` ns have passed, at most MGC_LONGEST_PAUSE. Returns whether it is there, and
 * not dead. */
int mgc_arena_put_off(struct mgc_arena *arena, const uint8_t *key, size_t key_length, int64_t pause);
/* Puts off, and what is dead and kept is stale again until it is not kept any more. */
int mgc_arena_revive(struct mgc_arena *arena, const uint8_t *key, size_t key_length, int64_t pause);

/* Frees what was in limbo and is no longer pinned. */
void mgc_arena_sweep(struct mgc_arena *arena);

#endif

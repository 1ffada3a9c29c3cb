/* Taking over the arena of a coordinator that died. */
#ifndef MPGROUPCACHE_ADOPT_H
#define MPGROUPCACHE_ADOPT_H

#include "arena.h"

struct mgc_adopted {
    uint64_t entries, dropped;
};

/* Takes over the arena of a dead coordinator, a file of `size` bytes: its entries, their order, and what views still hold.
 * The control segment is adopted before. What is damaged is dropped; `adopted` says how much. 0; -EPROTO: another layout;
 * -ESTALE: of another boot, not LIVE, another group's, or with other checksums; -EUCLEAN: nothing of it can be trusted;
 * -ENOMEM. */
int mgc_arena_adopt(struct mgc_arena *arena, uint8_t *base, uint64_t size, int fd, struct mgc_control *control,
                    const struct mgc_arena_options *options, struct mgc_adopted *adopted);

#endif

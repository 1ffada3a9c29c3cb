#define _GNU_SOURCE /* open-file-description locks */
#include "reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static int set_lock(int fd, uint32_t byte, short type) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

int mgc_lock(int fd, uint32_t byte) { return set_lock(fd, byte, F_WRLCK); }

int mgc_unlock(int fd, uint32_t byte) { return set_lock(fd, byte, F_UNLCK); }

/* Whether another description has the lock on one of these bytes: 1, 0, or a negative errno. */
static int is_locked(int fd, uint32_t byte, uint32_t count) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = count};
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

int mgc_map_attach(struct mgc_map *map, const void *control, const void *base, uint64_t size) {
    const struct mgc_arena_header *header = base;
    if (size < sizeof *header || header->magic != MGC_ARENA_MAGIC || header->version != MGC_LAYOUT_VERSION ||
        header->size != size || header->arena >= MGC_MAX_GROUPS)
        return -EPROTO;
    if (atomic_load_explicit(&header->state, memory_order_acquire) != MGC_SEGMENT_LIVE)
        return -ESTALE;
    *map = (struct mgc_map){.base = base,
                            .control = control,
                            .seed = header->seed,
                            .entries_offset = header->entries_offset,
                            .arena = header->arena};
    return 0;
}

/* ---- Ages ---- */

static uint64_t read_clock(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

#define SUSPENSIONS_SEEN 100000000u /* ns: how late */

/* There is no coarse CLOCK_BOOTTIME. What that is ahead of CLOCK_MONOTONIC by, the time for which the host was suspended, only
 * grows. Read in this order it is never too large, and too small by what passes between the two readings: so the
 * largest that was seen is the best. */
uint64_t mgc_host_now(void) {
    static _Atomic uint64_t suspended, good_until; /* tests have threads for workers */
    uint64_t now = read_clock(CLOCK_MONOTONIC_COARSE);
    if (now >= good_until) {
        uint64_t boot = read_clock(CLOCK_BOOTTIME), seen = boot - read_clock(CLOCK_MONOTONIC);
        if (good_until == 0 || (int64_t)(seen - suspended) > 0) /* below 0 in some time namespaces */
            suspended = seen;
        good_until = now + SUSPENSIONS_SEEN;
    }
    return now + suspended;
}

struct mgc_reading mgc_last_reading = {1ull << 63, 0};

uint64_t mgc_read_clock(uint64_t ticks) {
    uint64_t now = mgc_host_now();
    atomic_store_explicit(&mgc_last_reading.now, now, memory_order_relaxed);
    atomic_store_explicit(&mgc_last_reading.at, ticks, memory_order_release); /* last: who sees it sees no older clock */
    return now;
}

/* Whether an entry is to be found, and whether it is stale. */
static int is_found(const struct mgc_ages *ages, uint64_t now, uint64_t grace, int *stale) {
    uint64_t fresh_until = atomic_load_explicit(&ages->fresh_until, memory_order_relaxed);
    *stale = now >= fresh_until;
    return now < atomic_load_explicit(&ages->dead_at, memory_order_relaxed) || !*stale || now - fresh_until < grace;
}

/* Ages are read behind the pin: before it they could be those of another entry, or no ages at all. */
__attribute__((cold, noinline)) int mgc_cold_hit(const struct mgc_map *map, struct mgc_region *region, uint32_t pin,
                                                 const struct mgc_block *block, uint64_t word, uint64_t ticks,
                                                 uint64_t grace, struct mgc_hit *hit) {
    const struct mgc_ages *ages = block->flags & MGC_AGED ? mgc_ages_of(block) : NULL;
    uint64_t now = ages ? mgc_now_at(map->control, ticks) : 0;
    int stale = 0;
    hit->value = (const uint8_t *)block + mgc_value_offset(block);
    uint64_t end = atomic_load_explicit(&mgc_header(map)->entries_end, memory_order_relaxed);
    uint64_t value = (uint64_t)(hit->value - map->base);
    if (value > end || hit->length > end - value) { /* a damaged word: as in mgc_pinned_entry() */
        mgc_unpin(region, pin);
        return MGC_MISS;
    }
    if (block->era != atomic_load_explicit(&mgc_header(map)->era, memory_order_relaxed) ||
        (ages && !is_found(ages, now, grace, &stale))) {
        mgc_unpin(region, pin);
        return MGC_MISS;
    }
    int absent = block->flags & MGC_ABSENT;
    if (!grace) {
        /* That a value is absent is a hit of the list where it is noted, too: gets are hits and loads, and here nobody loads. */
        struct mgc_counters *counters = &region->counters[map->arena];
        mgc_count_hit(map, region, block, word, ticks);
        if (absent)
            mgc_count(&counters->absent_hits, 1);
        else if (stale)
            mgc_count(&counters->stale_hits, 1);
    }
    if (absent)
        return MGC_ABSENT_HIT;
    return stale && now >= atomic_load_explicit(&ages->refresh_at, memory_order_relaxed) ? MGC_STALE_HIT : MGC_HIT;
}

/* ---- Gets ---- */

/* How often a get begins again when words change under it. Each time needs a whole eviction or publication between two of
 * its instructions; what gives up is only a miss, and the coordinator looks again. */
#define ATTEMPTS 8

/* Bit i: word i of the bucket has this tag. Relaxed: it only says which words are to be loaded. Without branches, since
 * the word in question differs from key to key, and one wrong guess costs more than all these loads. */
static unsigned matches_in(mgc_bucket *bucket, uint64_t tag) {
    unsigned matches = 0;
    for (unsigned i = 0; i < MGC_BUCKET_WORDS; i++)
        matches |= (unsigned)(atomic_load_explicit(&(*bucket)[i], memory_order_relaxed) >> MGC_TAG_SHIFT == tag) << i;
    return matches;
}

int mgc_search(const struct mgc_map *map, struct mgc_region *region, uint32_t pin, const uint8_t *key, size_t key_length,
               uint64_t hash, uint64_t ticks, uint64_t grace, struct mgc_hit *hit) {
    const struct mgc_arena_header *header = mgc_header(map);
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        uint64_t descriptor = atomic_load_explicit(&header->index, memory_order_acquire); /* as in mgc_get() */
        if (descriptor == 0)
            return MGC_DETACHED;
        mgc_bucket *buckets[2];
        mgc_buckets(map->base, descriptor, hash, buckets);
        __builtin_prefetch(buckets[1]);
        unsigned matches = matches_in(buckets[0], mgc_tag(hash));
        matches |= matches_in(buckets[1], mgc_tag(hash)) << MGC_BUCKET_WORDS;
        int found = MGC_MISS;
        for (; matches && found == MGC_MISS; matches &= matches - 1) {
            unsigned i = (unsigned)__builtin_ctz(matches);
            _Atomic uint64_t *place = &(*buckets[i / MGC_BUCKET_WORDS])[i % MGC_BUCKET_WORDS];
            uint64_t word = atomic_load_explicit(place, memory_order_acquire); /* pairs with the release of publish() */
            if (word >> MGC_TAG_SHIFT == mgc_tag(hash) && word != 0)
                found = mgc_pin_entry(map, region, pin, place, word, key, key_length, ticks, grace, hit);
        }
        if (found >= MGC_HIT)
            return found;
        if (found == MGC_MISS && atomic_load_explicit(&header->index, memory_order_relaxed) == descriptor)
            return MGC_MISS;
    }
    return MGC_MISS;
}

int mgc_get_kept(const struct mgc_map *map, struct mgc_region *region, uint32_t pin, const uint8_t *key, size_t key_length,
                 uint64_t grace, struct mgc_hit *hit) {
    return mgc_search(map, region, pin, key, key_length, mgc_hash(map->seed, key, key_length), mgc_ticks(), grace, hit);
}

/* Loads the word of a look, and stores its pin. `word` is 0 of what is not there: it is searched for later. */
static void pin_look(const struct mgc_map *map, struct mgc_region *region, struct mgc_look *look, uint64_t descriptor) {
    uint64_t tag = mgc_tag(look->hash);
    look->place = mgc_near(*(mgc_bucket *)look->place, look->hash);
    look->word = atomic_load_explicit(look->place, memory_order_acquire); /* pairs with the release of publish() */
    if (MGC_UNLIKELY(look->word >> MGC_TAG_SHIFT != tag)) {
        mgc_bucket *buckets[2];
        mgc_buckets(map->base, descriptor, look->hash, buckets);
        unsigned matches = matches_in(buckets[0], tag) | matches_in(buckets[1], tag) << MGC_BUCKET_WORDS;
        look->word = 0;
        if (matches == 0)
            return;
        unsigned i = (unsigned)__builtin_ctz(matches);
        look->place = &(*buckets[i / MGC_BUCKET_WORDS])[i % MGC_BUCKET_WORDS];
        look->word = atomic_load_explicit(look->place, memory_order_acquire);
        if (look->word >> MGC_TAG_SHIFT != tag)
            look->word = 0;
    }
    if (look->word == 0)
        return;
    mgc_prefetch_entry(map, look->word, look->key_length);
    mgc_pin(map, region, look->pin, look->word);
}

void mgc_get_many(const struct mgc_map *map, struct mgc_region *region, struct mgc_look *looks, size_t count) {
    uint64_t ticks = mgc_ticks();
    uint64_t descriptor = atomic_load_explicit(&mgc_header(map)->index, memory_order_acquire); /* as in mgc_get() */
    for (struct mgc_look *look = looks; look < looks + count; look++) {
        look->found = MGC_DETACHED;
        if (descriptor == 0)
            continue;
        look->hash = mgc_hash(map->seed, look->key, look->key_length);
        look->place = *mgc_first_bucket(map->base, descriptor, look->hash);
        __builtin_prefetch((const void *)look->place);
    }
    if (descriptor == 0)
        return;
    for (struct mgc_look *look = looks; look < looks + count; look++)
        pin_look(map, region, look, descriptor);
    atomic_thread_fence(memory_order_seq_cst); /* as in mgc_pin_entry(), for each pin */
    for (struct mgc_look *look = looks; look < looks + count; look++) {
        look->found = MGC_MISS;
        if (look->word) {
            /* What the fence of a get is for a touch, which may be that of a look before this one. */
            atomic_thread_fence(memory_order_release);
            look->found = mgc_pinned_entry(map, region, look->pin, look->place, look->word, look->key, look->key_length,
                                           ticks, 0, &look->hit);
        }
        if (look->found < MGC_HIT)
            look->found = mgc_search(map, region, look->pin, look->key, look->key_length, look->hash, ticks, 0, &look->hit);
    }
}

/* ---- Regions ---- */

/* How many regions there are. A worker may write anything there: what is beyond the mapping is not looked at. */
static uint32_t regions_of(const struct mgc_control_header *control) {
    uint32_t count = atomic_load_explicit(&control->region_count, memory_order_acquire);
    return count < MGC_MAX_REGIONS ? count : MGC_MAX_REGIONS;
}

static off_t region_offset(int i) { return (off_t)(MGC_REGIONS_OFFSET + (size_t)i * MGC_REGION_STRIDE); }

static int claim(int fd, const struct mgc_control_header *control, int above, struct mgc_region **region) {
    /* The number of regions is read each time: while this process sleeps here, others may claim all that there were, and
     * the coordinator has made more for whoever of them it welcomed. */
    for (int i = above + 1; i < (int)regions_of(control); i++) {
        const struct mgc_region *seen = (const struct mgc_region *)((const uint8_t *)control + region_offset(i));
        if (atomic_load_explicit(&seen->state, memory_order_acquire) != MGC_REGION_FREE)
            continue;
        int error = mgc_lock(fd, MGC_REGION_LOCK(i));
        if (error == -EAGAIN)
            continue;
        if (error)
            return error;
        /* Looked at again behind the lock: between the look and the lock a worker may have claimed the region and died,
         * and its pins are the coordinator's to clear. */
        if (atomic_load_explicit(&seen->state, memory_order_acquire) != MGC_REGION_FREE) {
            mgc_unlock(fd, MGC_REGION_LOCK(i));
            continue;
        }
        struct mgc_region *mine = mmap(NULL, MGC_REGION_STRIDE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, region_offset(i));
        if (mine == MAP_FAILED) {
            error = -errno;
            mgc_unlock(fd, MGC_REGION_LOCK(i));
            return error;
        }
        atomic_store_explicit(&mine->pid, (uint32_t)getpid(), memory_order_relaxed);
        atomic_store_explicit(&mine->generation, atomic_load_explicit(&mine->generation, memory_order_relaxed) + 1,
                              memory_order_relaxed);
        atomic_store_explicit(&mine->state, MGC_REGION_LIVE, memory_order_release);
        *region = mine;
        return i;
    }
    return MGC_NO_REGION;
}

int mgc_region_claim(int fd, const struct mgc_control_header *control, int above, struct mgc_region **region) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = open(path, O_RDWR | O_CLOEXEC);
    if (own < 0)
        return -errno;
    int number = claim(own, control, above, region);
    close(own);
    return number;
}

void mgc_region_copy_pins(struct mgc_region *to, const struct mgc_region *from) {
    uint32_t limit = atomic_load_explicit(&from->pin_limit, memory_order_relaxed);
    atomic_store_explicit(&to->pin_limit, limit, memory_order_relaxed);
    for (uint32_t i = 0; i < limit; i++)
        atomic_store_explicit(&to->pins[i], atomic_load_explicit(&from->pins[i], memory_order_relaxed),
                              memory_order_release);
    /* A scan that misses these copies (it had passed this region already) began before them, and has therefore seen the
     * originals: regions are scanned in ascending order, and the originals are not cleared before the fork is over. The
     * fence keeps the clearing behind the copies for scans that come later. */
    atomic_thread_fence(memory_order_seq_cst);
}

void mgc_region_adopt(struct mgc_region *region) {
    atomic_store_explicit(&region->pid, (uint32_t)getpid(), memory_order_relaxed);
}

void mgc_region_leave(struct mgc_region *region) {
    atomic_store_explicit(&region->state, MGC_REGION_LEAVING, memory_order_release);
}

int mgc_regions_held(int fd, int leaving) {
    int locked = is_locked(fd, MGC_REGION_LOCK(0), MGC_MAX_REGIONS);
    if (locked <= 0 || leaving)
        return locked;
    for (int i = 0; i < (int)MGC_MAX_REGIONS; i++) {
        uint32_t state = MGC_REGION_LIVE;
        if ((locked = is_locked(fd, MGC_REGION_LOCK(i), 1)) < 0)
            return locked;
        /* Read, and not mapped: nothing is committed beyond the regions that there are. */
        if (locked && (pread(fd, &state, sizeof state, region_offset(i) + (off_t)offsetof(struct mgc_region, state)) !=
                           (ssize_t)sizeof state ||
                       state != MGC_REGION_LEAVING))
            return 1;
    }
    return 0;
}

void mgc_region_unmap(struct mgc_region *region) { munmap(region, MGC_REGION_STRIDE); }

void mgc_sum_counters(const void *control, uint32_t group, uint64_t sums[MGC_COUNTERS]) {
    const struct mgc_control_header *header = control;
    const uint8_t *base = control;
    /* A coordinator that died inside of a fold leaves the epoch odd until the next one adopts the segment: after some
     * tries, sums that may count one dead worker twice are better than none. */
    for (int attempt = 0; attempt < 1000; attempt++) {
        uint32_t epoch = atomic_load_explicit(&header->fold_epoch, memory_order_acquire);
        uint32_t count = regions_of(header);
        const struct mgc_counters *totals = (const struct mgc_counters *)(base + MGC_TOTALS_OFFSET) + group;
        for (size_t i = 0; i < MGC_COUNTERS; i++)
            sums[i] = atomic_load_explicit((const _Atomic uint64_t *)totals + i, memory_order_relaxed);
        for (uint32_t r = 0; r < count; r++) {
            const struct mgc_region *region = (const struct mgc_region *)(base + region_offset((int)r));
            const _Atomic uint64_t *counts = (const _Atomic uint64_t *)&region->counters[group];
            for (size_t i = 0; i < MGC_COUNTERS; i++)
                sums[i] += atomic_load_explicit(counts + i, memory_order_relaxed);
        }
        atomic_thread_fence(memory_order_acquire); /* the sums before the second look at the epoch: a sequence lock */
        if (!(epoch & 1) && atomic_load_explicit(&header->fold_epoch, memory_order_relaxed) == epoch)
            return;
    }
}

static const struct mgc_group_row *row_of(const void *control, uint32_t group) {
    return (const struct mgc_group_row *)(const void *)((const uint8_t *)control + MGC_GROUPS_OFFSET) + group;
}

uint64_t mgc_changes(const void *control, uint32_t group) {
    /* Pairs with the release before a change: whoever still reads the old count began before that. */
    return atomic_load_explicit(&row_of(control, group)->changes, memory_order_acquire);
}

void mgc_cleared(const void *control, uint32_t group, uint64_t *hits, uint64_t *loads) {
    *hits = atomic_load_explicit(&row_of(control, group)->cleared_hits, memory_order_relaxed);
    *loads = atomic_load_explicit(&row_of(control, group)->cleared_loads, memory_order_relaxed);
}

uint64_t mgc_server_requests(const void *control, uint32_t group) {
    return atomic_load_explicit(&row_of(control, group)->server_requests, memory_order_relaxed);
}

/* The coordinator dies before each of its stores to shared memory, in turn, and the next one takes over.
 *
 *     crash walk EVERY    looks at every EVERY-th store of a script, and there at what adoption makes of the memory as it is
 *     crash kill COUNT    runs the script COUNT times in a process that kills itself at a store, spread over all of them
 *
 * The core is compiled with -fsanitize=thread, and linked with the functions below instead of the sanitizer's: the
 * compiler calls one of them before each store. What adoption finds must be a whole arena, in which nothing is lost
 * but what the operation under way was to evict, nothing is there again that was removed, cleared or dead before it, no
 * version is given a second time, and views stay what they are. The next one may die too, while it
 * takes over: that is walked through in some of the places.
 */
#include "world.h"

#include <signal.h>
#include <sys/wait.h>

#define BUDGET (64u << 10)
#define KEYS 460u        /* of the script */
#define FULL_INDEX 384u  /* entries with which the index grows */
#define CHURN 1000u      /* keys from here on are put after an adoption */
#define WORDS 4u
#define VIEWS 8u
#define REGIONS 4u       /* of which anything is used */
#define NESTED 29u        /* every so manieth adoption is walked through, too, ... */
#define NESTED_STRIDE 97u /* ... at every so manieth of its stores, counted over all of them */
#define BOOT_ID ((const uint8_t *)"0123456789abcdef")

/* How much of each part of an arena is ever used here, and copied. */
#define SLOTS_BYTES (64u << 10)
#define INDEX_BYTES (64u << 10)
#define ENTRIES_BYTES (256u << 10)

struct image { /* of an instance: its memory, or a copy of it */
    uint8_t *control, *arena;
    int control_fd, arena_fd;
};

/* What the script has done, for whoever looks at the images: shared with the process that dies. */
struct model {
    uint64_t version;
    uint64_t before[KEYS]; /* each key's version before the operation under way; 0: not there */
    uint64_t number[KEYS]; /* the arena's version of it, and ... */
    uint64_t ages[KEYS][2]; /* ... until when it was fresh, and when it was to be dead */
    uint64_t spent;        /* the highest number of a value before that operation */
    uint64_t aging;        /* the key whose ages it changes, + 1 */
    uint64_t pending;      /* the key that it puts, + 1, and in which version */
    uint64_t pending_version;
    uint8_t missing[KEYS]; /* in some image of the operation */
    uint32_t formatted;
    uint32_t view_count;
    struct view {
        uint64_t key, version, value, length; /* value: its offset in the arena */
        uint32_t pin;
    } views[VIEWS];
    char doing[sizeof doing];
};

static struct model *model;
static struct image images[3];
static struct mgc_control *control;
static struct mgc_arena arena;

static struct {
    int watching, depth, deepest;
    uint64_t stores, every, looked_at, nested_stores, nested_looked_at, kill_at;
} walk;

/* ---- Stores ---- */

static void look(void);

static int is_shared(const void *place) {
    const struct image *image = &images[walk.depth];
    uint64_t in_control = (uint64_t)((const uint8_t *)place - image->control);
    uint64_t in_arena = (uint64_t)((const uint8_t *)place - image->arena);
    return in_control < MGC_CONTROL_SIZE || in_arena < mgc_arena_size(BUDGET);
}

static void before_store(const void *place) {
    if (!walk.watching || !is_shared(place))
        return;
    if (walk.depth == 0)
        walk.stores++;
    if (walk.kill_at) {
        if (walk.stores == walk.kill_at)
            raise(SIGKILL);
    } else if ((walk.depth == 0 ? walk.stores % walk.every : walk.nested_stores++ % NESTED_STRIDE) == 0) {
        walk.watching = 0;
        look();
        walk.watching = 1;
    }
}

#define WRITE(name)                                                                                                    \
    void name(void *place);                                                                                            \
    void name(void *place) { before_store(place); }
#define NOTHING(name)                                                                                                  \
    void name(void *place);                                                                                            \
    void name(void *place) { (void)place; }
#define ATOMIC(bits)                                                                                                   \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *place, int order);                        \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *place, uint##bits##_t value, int order);                 \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t *place, int order) {                  \
        (void)order;                                                                                                   \
        return __atomic_load_n(place, __ATOMIC_SEQ_CST);                                                               \
    }                                                                                                                  \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t *place, uint##bits##_t value, int order) {           \
        (void)order;                                                                                                   \
        before_store((const void *)place);                                                                             \
        __atomic_store_n(place, value, __ATOMIC_SEQ_CST);                                                              \
    }

WRITE(__tsan_write1)
WRITE(__tsan_write2)
WRITE(__tsan_write4)
WRITE(__tsan_write8)
WRITE(__tsan_write16)
WRITE(__tsan_unaligned_write2)
WRITE(__tsan_unaligned_write4)
WRITE(__tsan_unaligned_write8)
WRITE(__tsan_unaligned_write16)
NOTHING(__tsan_read1)
NOTHING(__tsan_read2)
NOTHING(__tsan_read4)
NOTHING(__tsan_read8)
NOTHING(__tsan_read16)
NOTHING(__tsan_unaligned_read2)
NOTHING(__tsan_unaligned_read4)
NOTHING(__tsan_unaligned_read8)
NOTHING(__tsan_unaligned_read16)
NOTHING(__tsan_func_entry)
ATOMIC(32)
ATOMIC(64)

void __tsan_write_range(void *place, size_t bytes);
void __tsan_read_range(void *place, size_t bytes);
void __tsan_func_exit(void);
void __tsan_init(void);
void __tsan_atomic_thread_fence(int order);
void __tsan_write_range(void *place, size_t bytes) { (void)bytes, before_store(place); }
void __tsan_read_range(void *place, size_t bytes) { (void)place, (void)bytes; }
void __tsan_func_exit(void) {}
void __tsan_init(void) {}
void __tsan_atomic_thread_fence(int order) { (void)order; }

/* The core is compiled with these in place of memcpy and memset: one may die in the middle of them. */
void *crash_copy(void *to, const void *from, size_t bytes);
void *crash_set(void *to, int byte, size_t bytes);

void *crash_copy(void *to, const void *from, size_t bytes) {
    before_store(to);
    memcpy(to, from, bytes / 2);
    before_store(to);
    memcpy((uint8_t *)to + bytes / 2, (const uint8_t *)from + bytes / 2, bytes - bytes / 2);
    return to;
}

void *crash_set(void *to, int byte, size_t bytes) {
    before_store(to);
    memset(to, byte, bytes / 2);
    before_store(to);
    memset((uint8_t *)to + bytes / 2, byte, bytes - bytes / 2);
    return to;
}

/* ---- What the next coordinator finds ---- */

static void look_at(const struct image *image);

/* Reads by descriptor: a look at a page that is not committed would commit it. */
static void copy_range(uint8_t *to, int from, uint64_t offset, uint64_t bytes) {
    REQUIRE(pread(from, to + offset, bytes, (off_t)offset) == (ssize_t)bytes, "%s", strerror(errno));
}

static void copy_image(const struct image *to, const struct image *from) {
    struct mgc_plan plan = mgc_arena_plan(BUDGET);
    copy_range(to->control, from->control_fd, 0, MGC_PAGE);
    copy_range(to->control, from->control_fd, MGC_TOTALS_OFFSET, MGC_PAGE);
    copy_range(to->control, from->control_fd, MGC_GROUPS_OFFSET, MGC_PAGE);
    for (size_t i = 0; i < REGIONS; i++)
        copy_range(to->control, from->control_fd, MGC_REGIONS_OFFSET + i * MGC_REGION_STRIDE, MGC_REGION_SIZE);
    copy_range(to->arena, from->arena_fd, 0, MGC_PAGE);
    copy_range(to->arena, from->arena_fd, plan.slots_offset, SLOTS_BYTES);
    copy_range(to->arena, from->arena_fd, plan.index_offset, INDEX_BYTES);
    copy_range(to->arena, from->arena_fd, plan.entries_offset, ENTRIES_BYTES);
}

static void require_within_what_is_copied(const uint8_t *base) {
    const struct mgc_arena_header *header = (const struct mgc_arena_header *)(const void *)base;
    REQUIRE(header->slots_end <= header->slots_offset + SLOTS_BYTES &&
                header->index_end <= header->index_offset + INDEX_BYTES &&
                header->entries_end <= header->entries_offset + ENTRIES_BYTES,
            "the script needs more than is copied");
}

static void look(void) {
    *(walk.depth == 0 ? &walk.looked_at : &walk.nested_looked_at) += 1;
    copy_image(&images[walk.depth + 1], &images[walk.depth]);
    walk.depth++;
    look_at(&images[walk.depth]);
    walk.depth--;
}

static int ages_of(struct mgc_arena *arena_now, uint64_t key, uint64_t ages[2]) {
    uint8_t bytes[32];
    size_t length = make_key(key, bytes);
    _Atomic uint64_t *place = mgc_index_find(arena_now, mgc_hash(arena_now->header->seed, bytes, length), bytes, length);
    const struct mgc_block *block = mgc_heap_block(&arena_now->heap, mgc_word_offset(*place));
    ages[0] = ages[1] = MGC_FOREVER;
    if (!(block->flags & MGC_AGED))
        return 0;
    ages[0] = mgc_ages_of(block)->fresh_until;
    ages[1] = mgc_ages_of(block)->dead_at;
    return 1;
}

static void require_nothing_lost(struct mgc_arena *next, uint64_t entries) {
    uint64_t there = 0, ages[2];
    REQUIRE(next->next_version > model->spent, "the next version is %llu, %llu was given before",
            (unsigned long long)next->next_version, (unsigned long long)model->spent);
    for (uint64_t key = 0; key < KEYS; key++) {
        struct mgc_found found;
        uint8_t bytes[32];
        if (!mgc_arena_find_kept(next, bytes, make_key(key, bytes), &found)) {
            model->missing[key] = 1;
            continue;
        }
        there++;
        REQUIRE(found.version < next->next_version, "key %llu: the next version will be the same", (unsigned long long)key);
        ages_of(next, key, ages);
        REQUIRE(ages[0] <= ages[1], "key %llu: fresh when it is dead", (unsigned long long)key);
        if (key + 1 != model->pending) {
            REQUIRE(found.version == model->number[key], "key %llu has another version", (unsigned long long)key);
            REQUIRE(key + 1 == model->aging || memcmp(ages, model->ages[key], sizeof ages) == 0, "key %llu: other ages",
                    (unsigned long long)key);
        }
        uint64_t version = verify_value(&(struct mgc_hit){found.value, found.length}, key, "after adoption");
        REQUIRE(version == model->before[key] || (key + 1 == model->pending && version == model->pending_version),
                "key %llu: got version %llu, expected %llu", (unsigned long long)key, (unsigned long long)version,
                (unsigned long long)model->before[key]);
    }
    REQUIRE(there == entries, "%llu entries were taken over, %llu are found", (unsigned long long)entries,
            (unsigned long long)there);
}

static void require_whole_views(const uint8_t *base, uint32_t from, const char *when) {
    for (uint32_t i = from; i < model->view_count; i++) {
        const struct view *view = &model->views[i];
        struct mgc_hit hit = {base + view->value, view->length};
        REQUIRE(verify_value(&hit, view->key, when) == view->version, "a view of another version");
    }
}

static void require_no_word_outside_the_index(const struct mgc_arena *next) {
    const _Atomic uint64_t *word = (const _Atomic uint64_t *)(const void *)(next->base + next->header->index_offset);
    const _Atomic uint64_t *from = (const _Atomic uint64_t *)(const void *)(next->base + mgc_index_offset(next->descriptor));
    const _Atomic uint64_t *end = (const _Atomic uint64_t *)(const void *)(next->base + next->index_committed);
    for (; word < end; word++)
        REQUIRE((word >= from && word < from + next->index_words) || *word == 0, "a word outside the index in force");
}

/* Writes into all free blocks of the sizes that are held. */
static void churn(struct mgc_arena *next) {
    for (uint64_t key = 0; key < 10; key++)
        REQUIRE(put(next, CHURN + key, 1, WORDS + key % 5, MGC_MAIN), "no room");
    for (uint64_t key = 0; key < 10; key++)
        remove_key(next, CHURN + key);
}

/* Takes over an image, and uses it until nothing is where it was. */
static void look_at(const struct image *image) {
    static struct mgc_control controls[3];
    static struct mgc_arena arenas[3];
    struct mgc_control *next_control = &controls[walk.depth];
    struct mgc_arena *next = &arenas[walk.depth];
    struct mgc_arena_options options = {.budget = BUDGET, .max_entry = BUDGET / 4};
    struct mgc_adopted adopted;
    const struct mgc_arena_header *header = (const struct mgc_arena_header *)(const void *)image->arena;
    memcpy(options.boot_id, BOOT_ID, 16);
    if (!model->formatted && header->state != MGC_SEGMENT_LIVE) {
        REQUIRE(mgc_arena_adopt(next, image->arena, mgc_arena_size(BUDGET), image->arena_fd, control, &options, &adopted) < 0,
                "an arena that is not finished was taken over");
        return;
    }
    /* Where the adoption is to be walked through, too. */
    int nested = walk.depth > 0 && walk.depth < walk.deepest && walk.looked_at % NESTED == 0;
    walk.watching = nested;
    int control_error = mgc_control_adopt(next_control, image->control, image->control_fd, BOOT_ID);
    int error = mgc_arena_adopt(next, image->arena, mgc_arena_size(BUDGET), image->arena_fd, next_control, &options, &adopted);
    walk.watching = 0;
    REQUIRE(control_error == 0 && error == 0, "%s, %s", strerror(-control_error), strerror(-error));
    REQUIRE(adopted.dropped <= 1, "%llu entries dropped", (unsigned long long)adopted.dropped);
    require_sound(next);
    require_no_word_outside_the_index(next);
    require_nothing_lost(next, adopted.entries);
    require_whole_views(image->arena, 0, "after adoption");
    struct mgc_map map;
    struct mgc_hit hit;
    uint8_t bytes[32];
    REQUIRE(mgc_map_attach(&map, image->control, image->arena, header->size) == 0, "attach");
    int found = mgc_get(&map, region_of(next_control, 0), VIEWS + 1, bytes, make_key(1, bytes), &hit);
    uint64_t version = found == MGC_HIT ? verify_value(&hit, 1, "when found") : 0;
    uint64_t bytes_now = mgc_list_bytes(next, MGC_MAIN) + mgc_list_bytes(next, MGC_HOT);
    REQUIRE(bytes_now <= BUDGET, "%llu bytes are more than the budget", (unsigned long long)bytes_now);
    /* The oldest view first: in a range, it is the one at the beginning. */
    for (uint32_t released = 0; released <= model->view_count; released++) {
        churn(next);
        require_whole_views(image->arena, released, "after churn");
        if (released < model->view_count)
            mgc_unpin(region_of(next_control, 0), model->views[released].pin);
    }
    if (found == MGC_HIT)
        REQUIRE(verify_value(&hit, 1, "after churn") == version, "another version");
    for (uint64_t key = 0; key < 6; key++) /* evicts all there was */
        REQUIRE(put(next, CHURN + 100 + key, 1, BUDGET / 40, MGC_MAIN), "no room");
    require_sound(next);
    mgc_unpin(region_of(next_control, 0), VIEWS + 1);
    mgc_control_reap(next_control);
    mgc_arena_sweep(next);
    REQUIRE(next->limbo.count == 0, "%zu blocks in limbo that nobody has pinned", next->limbo.count);
    require_sound(next);
    require_within_what_is_copied(image->arena);
    mgc_arena_close(next);
    mgc_control_close(next_control);
}

/* ---- The script ---- */

static uint64_t version_in_arena(uint64_t key) {
    struct mgc_found found;
    uint8_t bytes[32];
    if (!mgc_arena_find_kept(&arena, bytes, make_key(key, bytes), &found))
        return 0;
    model->number[key] = found.version;
    ages_of(&arena, key, model->ages[key]);
    return verify_value(&(struct mgc_hit){found.value, found.length}, key, "after the operation");
}

static void begin(const char *what) {
    snprintf(doing, sizeof doing, "%s", what);
    snprintf(model->doing, sizeof doing, "%s", what);
    walk.watching = 1;
}

/* No image may lack what was there before the operation and is there behind it. */
static void end(void) {
    walk.watching = 0;
    for (uint64_t key = 0; key < KEYS; key++) {
        uint64_t version = version_in_arena(key);
        REQUIRE(!(model->missing[key] && model->before[key] && version), "key %llu was lost", (unsigned long long)key);
        model->before[key] = version;
        model->missing[key] = 0;
    }
    model->pending = model->aging = 0;
    model->spent = arena.next_version - 1;
}

static void put_words(uint64_t key, uint64_t words, uint32_t list) {
    model->pending = key + 1;
    model->pending_version = ++model->version;
    begin("put");
    REQUIRE(put(&arena, key, model->version, words, list), "no room");
    end();
}

static void put_aged(uint64_t key, int64_t fresh, int64_t dead) {
    model->pending = key + 1;
    model->pending_version = ++model->version;
    begin("put");
    REQUIRE(put_with(&arena, key, model->version, WORDS, &(struct mgc_traits){.flags = MGC_AGED, .fresh = fresh, .dead = dead}),
            "no room");
    end();
}

static void take_away(uint64_t key) {
    begin("remove");
    REQUIRE(remove_key(&arena, key), "was not there");
    end();
}

static void hold(uint64_t key) {
    struct view *view = &model->views[model->view_count];
    struct mgc_map map;
    struct mgc_hit hit;
    uint8_t bytes[32];
    REQUIRE(mgc_map_attach(&map, control->base, arena.base, arena.header->size) == 0, "attach");
    view->pin = model->view_count + 1;
    REQUIRE(mgc_get(&map, region_of(control, 0), view->pin, bytes, make_key(key, bytes), &hit) == MGC_HIT, "a miss");
    *view = (struct view){.key = key, .version = verify_value(&hit, key, "when found"), .pin = view->pin,
                          .value = (uint64_t)(hit.value - arena.base), .length = hit.length};
    model->view_count++;
}

static void release_last(void) { mgc_unpin(region_of(control, 0), model->views[--model->view_count].pin); }

static void reserve_and_abandon(uint64_t key) {
    struct mgc_reservation reservation;
    begin("reserve and abandon");
    REQUIRE(reserve(&arena, key, 4000, MGC_MAIN, &reservation), "no room");
    fill_value(reservation.value, key, 1, 500);
    mgc_arena_abandon(&arena, &reservation);
    end();
}

/* Others are put while a value is filled. */
static void fill_slowly(uint64_t key) {
    struct mgc_reservation reservation;
    begin("reserve");
    REQUIRE(reserve(&arena, key, 4000, MGC_MAIN, &reservation), "no room");
    end();
    put_words(5, 60, MGC_MAIN);
    take_away(5);
    model->pending = key + 1;
    model->pending_version = ++model->version;
    begin("fill and publish");
    fill_value(reservation.value, key, model->version, 500);
    REQUIRE(mgc_arena_publish(&arena, &reservation), "not published");
    end();
}

/* A worker that hits, holds a view, and is dead before anybody looks. */
static void live_and_die(uint64_t key) {
    struct mgc_region *region;
    struct mgc_map map;
    struct mgc_hit hit;
    uint8_t bytes[32];
    const struct mgc_control_header *header = (const struct mgc_control_header *)(const void *)control->base;
    REQUIRE(mgc_map_attach(&map, control->base, arena.base, arena.header->size) == 0, "attach");
    int number = mgc_region_claim(control->fd, header, 0, &region);
    REQUIRE(number > 0 && number < (int)REGIONS, "%d", number);
    REQUIRE(mgc_get(&map, region, 1, bytes, make_key(key, bytes), &hit) == MGC_HIT, "a miss");
    mgc_region_unmap(region);
}

/* An operation on the ages of a key. */
static void change_ages(const char *what, uint64_t key, int (*change)(const uint8_t *key, size_t length)) {
    uint8_t bytes[32];
    size_t length = make_key(key, bytes);
    model->aging = key + 1;
    begin(what);
    REQUIRE(change(bytes, length), "was not there");
    end();
}

#define HOURS (3600ll * 1000000000)

static int touch_for_longer(const uint8_t *key, size_t length) { return mgc_arena_touch(&arena, key, length, 3 * HOURS, 6 * HOURS); }
static int touch_for_less(const uint8_t *key, size_t length) { return mgc_arena_touch(&arena, key, length, HOURS / 2, HOURS); }
static int put_off(const uint8_t *key, size_t length) { return mgc_arena_put_off(&arena, key, length, HOURS); }
static int revive(const uint8_t *key, size_t length) { return mgc_arena_revive(&arena, key, length, HOURS); }

static void pass(int64_t time) {
    mgc_control_advance(control, time);
    end();
}

static void reclaim(uint64_t most) {
    int more;
    begin("reclaim");
    mgc_arena_reclaim(&arena, most, &more);
    end();
}

static void clear(void) {
    begin("clear");
    mgc_arena_clear(&arena);
    end();
}

/* Values that age and change. What is dead is not taken over, and the newest version is not the highest that is left. */
static void change_values(void) {
    mgc_set_ages(control, 0, &(struct mgc_group_ages){.stale_if_error = 3 * HOURS});
    for (uint64_t key = 10; key < 17; key++)
        put_aged(key, HOURS, 2 * HOURS);
    put_words(17, WORDS, MGC_MAIN);
    change_ages("touch", 10, touch_for_longer);
    change_ages("touch", 11, touch_for_less);
    change_ages("touch", 17, touch_for_less); /* ageless until now: in a block that has room for ages */
    change_ages("put off", 12, put_off);
    put_aged(13, 2 * HOURS, 2 * HOURS);
    take_away(13);
    pass(5 * HOURS / 2);
    change_ages("revive", 12, revive);
    pass(2 * HOURS); /* at 4.5 h: all that were kept until 3.5 and 4 are gone */
    for (uint64_t key = 11; key < 18; key++)
        REQUIRE(!model->before[key], "key %llu is there", (unsigned long long)key);
    reclaim(2);
    put_aged(14, HOURS, HOURS); /* in place of one that is gone */
    reclaim(100);
    put_words(18, 3 * WORDS, MGC_MAIN);
    put_words(19, WORDS, MGC_HOT);
    hold(18);
    clear();
    reclaim(2);
    for (uint64_t key = 16; key < 24; key++) /* in place of those that are dead, and beside them */
        put_words(key, WORDS + key % 3, MGC_MAIN);
    put_aged(10, HOURS, HOURS);
    take_away(10);
    clear();
    reclaim(100);
    put_words(3, WORDS, MGC_MAIN);
    take_away(3);
    release_last();
}

static void format(void) {
    struct mgc_arena_options options = {.incarnation = 1, .budget = BUDGET, .max_entry = BUDGET / 4, .seed = 0x5eed};
    memcpy(options.boot_id, BOOT_ID, 16);
    begin("format");
    REQUIRE(mgc_arena_format(&arena, images[0].arena, images[0].arena_fd, control, &options) == 0, "no memory");
    end();
    model->formatted = 1;
}

static void run_script(void) {
    format();
    for (uint64_t key = 0; key < 20; key++)
        put_words(key, WORDS + key, MGC_MAIN);
    hold(3);
    hold(4);
    put_words(3, WORDS, MGC_MAIN); /* in place of what is held */
    take_away(4);                  /* what is held */
    hold(3);
    reserve_and_abandon(6);
    reserve_and_abandon(450);
    for (uint64_t key = 20; key < FULL_INDEX - 1; key++)
        put_words(key, 2, MGC_MAIN);
    hold(100);
    for (uint64_t key = FULL_INDEX - 1; key < FULL_INDEX + 6; key++) /* the index grows */
        put_words(key, 2, MGC_MAIN);
    REQUIRE(arena.descriptor != mgc_index_descriptor(arena.header->index_offset, MGC_INDEX_MIN_LOG2), "no growth");
    live_and_die(7);
    begin("drain");
    REQUIRE(mgc_control_drain(control) > 0, "nobody has hit");
    end();
    begin("reap");
    REQUIRE(mgc_control_reap(control) == 1, "nobody has died");
    end();
    fill_slowly(451);
    release_last();
    begin("sweep");
    mgc_arena_sweep(&arena);
    end();
    for (uint64_t key = 0; key < 8; key++) /* large ones, for which neighbours make room, and hot ones */
        put_words(440 + key, BUDGET / 48 - key, key % 3 == 2 ? MGC_HOT : MGC_MAIN);
    begin("retire");
    uint32_t regions = mgc_control_spare_regions(control, 1);
    REQUIRE(regions >= 1, "no region");
    end();
    REQUIRE(arena.header->lists[MGC_MAIN].evictions > 100, "too few evictions");
    change_values();
}

static void open_world(void) {
    struct mgc_plan plan = mgc_arena_plan(BUDGET);
    REQUIRE(plan.index_offset - plan.slots_offset >= SLOTS_BYTES && plan.entries_offset - plan.index_offset >= INDEX_BYTES &&
                plan.size - plan.entries_offset >= ENTRIES_BYTES,
            "parts are smaller than what is copied of them");
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
        images[i].control = map_memfd("control", MGC_CONTROL_SIZE, &images[i].control_fd);
        images[i].arena = map_memfd("arena", mgc_arena_size(BUDGET), &images[i].arena_fd);
        if (i > 0)
            REQUIRE(mgc_commit(images[i].control_fd, 0, MGC_REGIONS_OFFSET + MGC_REGION_STEP * MGC_REGION_STRIDE) == 0, "no memory");
    }
    control = calloc(1, sizeof *control);
    REQUIRE(control && mgc_control_format(control, images[0].control, images[0].control_fd, BOOT_ID) == 0, "no memory");
    REQUIRE(mgc_control_add_group(control, (const uint8_t *)"group", 5, BUDGET) == 0, "no row");
    model = mmap(NULL, sizeof *model, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(model != MAP_FAILED, "%s", strerror(errno));
}

static void close_world(void) {
    mgc_arena_close(&arena);
    mgc_control_close(control);
    free(control);
    munmap(model, sizeof *model);
    for (size_t i = 0; i < sizeof images / sizeof *images; i++) {
        munmap(images[i].control, MGC_CONTROL_SIZE);
        munmap(images[i].arena, mgc_arena_size(BUDGET));
        close(images[i].control_fd);
        close(images[i].arena_fd);
    }
}

static uint64_t walk_all(uint64_t every) {
    open_world();
    walk.every = every;
    walk.deepest = 2;
    run_script();
    close_world();
    return walk.stores;
}

static void kill_at(uint64_t store) {
    open_world();
    pid_t child = fork();
    if (child == 0) {
        walk.kill_at = store;
        run_script();
        _exit(0);
    }
    int status;
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child, "%s", strerror(errno));
    REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "store %llu was not reached", (unsigned long long)store);
    snprintf(doing, sizeof doing, "%.120s, killed at store %llu", model->doing, (unsigned long long)store);
    walk.depth = 1;
    look_at(&images[0]);
    walk.depth = 0;
    close_world();
}

int main(int count, char **arguments) {
    REQUIRE(count == 3, "crash walk EVERY | crash kill COUNT");
    uint64_t number = strtoull(arguments[2], NULL, 10);
    if (strcmp(arguments[1], "walk") == 0) {
        walk_all(number);
        printf("%llu stores, %llu looked at, and %llu of adoptions\n", (unsigned long long)walk.stores,
               (unsigned long long)walk.looked_at, (unsigned long long)walk.nested_looked_at);
        return 0;
    }
    uint64_t stores = walk_all(UINT64_MAX);
    memset(&walk, 0, sizeof walk);
    for (uint64_t i = 0; i < number; i++)
        kill_at(1 + stores * i / number);
    printf("%llu stores, killed at %llu\n", (unsigned long long)stores, (unsigned long long)number);
    return 0;
}

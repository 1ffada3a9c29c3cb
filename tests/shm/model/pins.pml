/* The pin protocol, for exhaustive search: docs/design.md, "Pins" and "Taking over".
 *
 * One key, whose entry is in one of two generations of the index, in one of three cells of memory, or in two of them at
 * once. Readers get it, hold it, release it; the coordinator publishes, evicts, grows the index, frees, and merges what it
 * has freed; it clears the cache, and values die. What is wrong shows as a reader that finds a cell unfilled, or another value
 * than before, while it holds it; or as one that is given a value that was cleared, or dead, before its get began.
 *
 * Stores go through store buffers, which empty in order and at any time later: that is x86's memory (TSO). A fence waits for
 * its own buffer. On weaker machines the orders of the code give what is used here of it: the coordinator's fills come
 * before the release of the word, a reader's reads before the release that withdraws its pin and behind the acquire of
 * the second load, and nothing else is ordered but by the fences.
 *
 * -D names turn features on, or break one thing: see tests/test_model.py. Offers have no part in it: values that are not
 * in an arena are handed over in memfds.
 */
#ifndef GETS
#define GETS 2 /* of each reader */
#endif
#ifndef OPERATIONS
#define OPERATIONS 4 /* of the coordinators together */
#endif
#ifndef COORDINATOR_DEATHS
#define COORDINATOR_DEATHS 0 /* or 1 */
#endif
#ifndef READER_DEATHS
#define READER_DEATHS 0
#endif
#ifndef FORKS
#define FORKS 0
#endif
#ifndef CLEARS
#define CLEARS 0
#endif
#ifndef DEATHS
#define DEATHS 0 /* of values, by age */
#endif

#define READERS 2
#define REGIONS 3 /* those of the readers, and one of the first one's child: a higher one, as scans ascend */
#define CHILD 2
#define CELLS 3
#define VERSIONS 8

/* What nobody else can see is one step with what goes before it: a store into one's own buffer, too. */

/* ---- Memory. A word and a pin are 0, or 1 + the first cell of the block that they name. ---- */

byte word[2]; /* in each generation of the index */
byte index;   /* the generation in force */
byte cell[CELLS]; /* the version of the value that fills it; 0: free, or being filled */
byte pin[REGIONS];
bool claimed[REGIONS];

byte era;
bool lock[REGIONS]; /* the kernel's */
bool large[VERSIONS]; /* what a block's header says: whether the value lies in two cells ... */
byte era_of[VERSIONS]; /* ... and when it was filled */
byte died; /* a bit for each version; time stands in nobody's store buffer */

byte ended;     /* the first era that no clear has ended, of those that were answered */
byte stillborn; /* values that were dead when they were published */

mtype = { WORD, INDEX, CELL, PIN, CLAIMED, ERA };
chan coordinators_stores = [10] of { mtype, byte, byte };
chan readers_stores[REGIONS] = [2] of { byte, byte }; /* to pins: which, what */

#define STORE(place, i, value) coordinators_stores!place, i, value
#define FENCE empty(coordinators_stores)

active proctype Memory() {
    mtype place;
    byte i, value;
end:
    do
    :: atomic {
           coordinators_stores?place, i, value;
           if
           :: place == WORD -> word[i] = value
           :: place == INDEX -> index = value
           :: place == CELL -> cell[i] = value
           :: place == PIN -> pin[i] = value
           :: place == CLAIMED -> claimed[i] = value
           :: place == ERA -> era = value
           fi;
           place = 0; i = 0; value = 0
       }
    :: atomic { readers_stores[0]?i, value; pin[i] = value; i = 0; value = 0 }
    :: atomic { readers_stores[1]?i, value; pin[i] = value; i = 0; value = 0 }
    :: atomic { readers_stores[2]?i, value; pin[i] = value; i = 0; value = 0 }
    od
}

/* ---- Workers ---- */

byte reader_deaths, forks;
byte left;  /* readers that are not through */

/* A worker that begins with nothing, or a forked child that begins with the copy of a pin. */
proctype Reader(byte r, w, v) {
    byte generation, gets;
    byte first_era, dead_before; /* when the get began */
#ifdef AGE_BEFORE_PIN
    bool lives;
#endif
    if
    :: w -> gets = GETS; goto held
    :: else
    fi;
again:
    do
    :: gets < GETS ->
        atomic { gets++; generation = index; first_era = ended; dead_before = died }
        atomic {
            w = word[generation];
            if
            :: w == 0 -> generation = 0; goto again
#ifdef AGE_BEFORE_PIN
            :: else
            fi
        }
        atomic {
            lives = !(died & (1 << cell[w - 1]));
            readers_stores[r]!r, w
        }
#else
            :: else -> readers_stores[r]!r, w
            fi
        }
#endif
#ifndef NO_READERS_FENCE
        empty(readers_stores[r]);
#endif
#ifndef NO_SECOND_LOAD
        atomic {
            if
            :: word[generation] != w -> readers_stores[r]!r, 0; w = 0; generation = 0; goto again
            :: else -> generation = 0
            fi
        }
#endif
        atomic {
            v = cell[w - 1];
            assert(v && (!large[v] || cell[w] == v));
            if
#ifndef NO_ERA
            :: era_of[v] != era -> readers_stores[r]!r, 0; w = 0; v = 0; goto again
#endif
#ifdef AGE_BEFORE_PIN
            :: !lives
#else
            :: died & (1 << v)
#endif
               -> readers_stores[r]!r, 0; w = 0; v = 0; goto again
            :: else -> assert(era_of[v] >= first_era && !((dead_before | stillborn) & (1 << v)))
            fi;
            first_era = 0; dead_before = 0
        }
held:
        if
        :: r == 0 && forks < FORKS ->
            atomic {
                forks++; left++;
                claimed[CHILD] = true; lock[CHILD] = true;
                readers_stores[r]!CHILD, w
            }
            atomic { empty(readers_stores[r]) -> run Reader(CHILD, w, v) } /* a fork is a system call */
        :: reader_deaths < READER_DEATHS ->
            atomic { reader_deaths++; generation = 0; goto dead }
        :: true
        fi;
        atomic {
            assert(cell[w - 1] == v && (!large[v] || cell[w] == v));
            readers_stores[r]!r, 0;
            w = 0; v = 0; generation = 0
        }
    :: gets == GETS -> break
    od;
    atomic { empty(readers_stores[r]) -> lock[r] = false; left--; gets = 0; goto gone }
dead: /* what it has stored is in memory before the kernel gives up its lock */
    atomic { empty(readers_stores[r]) -> lock[r] = false; w = 0; v = 0 }
    if
    :: r == CHILD -> left--
    :: else -> /* another worker claims the region, once that is free */
        atomic { !claimed[r] -> claimed[r] = true; lock[r] = true; goto again }
    fi;
gone:
    skip
}

/* ---- The coordinator ---- */

#define FREE 0
#define PUBLISHED 1
#define RETIRING 2 /* unpublished; the pins have not been looked at since */
#define LIMBO 3
#define TAIL 4  /* the second cell of a block */
#define RANGE 5 /* in limbo since the last coordinator died; what blocks there are in it is not known */

#define EVICT 10 /* in place of a cell to publish in */
#define GROW 11
#define SWEEP 12
#define CLEAR 13
#define DIE 14

byte state[CELLS]; /* as the coordinator has it */
byte operations, versions, clears, deaths;

inline free(c) {
    STORE(CELL, c, 0); /* the allocator writes into free blocks */
    state[c] = FREE
}

/* Reads the pins, one after the other. `seen` has a bit for each cell that one names. */
inline scan() {
    atomic { seen = 0; i = 0 }
    do
    :: atomic {
           i < REGIONS ->
#ifdef SCANS_DESCEND
           upto = REGIONS - 1 - i;
#else
           upto = i;
#endif
           if
           :: pin[upto] -> seen = seen | (1 << (pin[upto] - 1))
           :: else
           fi;
           upto = 0;
           i++
       }
    :: atomic { i == REGIONS -> i = 0; break }
    od
}

/* The second half of the evict rule. */
inline retire() {
#ifndef NO_COORDINATORS_FENCE
    FENCE;
#endif
    scan();
    atomic {
        do
        :: i < CELLS ->
            if
            :: (state[i] == RETIRING || state[i] == LIMBO) && (seen & (1 << i)) ->
#ifdef MERGES_LIMBO
                if /* with the free block in front of it */
                :: i > 0 && state[i - 1] == FREE -> free(i)
                :: else -> state[i] = LIMBO
                fi
#else
                state[i] = LIMBO
#endif
            :: (state[i] == RETIRING || state[i] == LIMBO) && !(seen & (1 << i)) ->
                free(i);
                if
                :: i + 1 < CELLS && state[i + 1] == TAIL -> free(i + 1)
                :: else
                fi
            :: state[i] == RANGE && (i == 0 || state[i - 1] != RANGE) -> /* all of it, or nothing */
                upto = i;
                do
                :: upto < CELLS && state[upto] == RANGE -> kept = kept || (seen & (1 << upto)); upto++
                :: else -> break
                od;
#ifdef RANGE_BY_ITS_FIRST_PIN
                kept = (seen & (1 << i));
#endif
                do
                :: !kept && upto > i -> upto--; free(upto)
                :: else -> break
                od;
                upto = 0; kept = false
            :: else
            fi;
            i++
        :: i == CELLS -> i = 0; seen = 0; break
        od
    }
}

inline unpublish() {
    if
    :: entry -> state[entry - 1] = RETIRING; entry = 0
    :: else
    fi
}

/* Frees the regions of workers that are gone. */
inline reap() {
    do
    :: atomic {
           i < REGIONS ->
           if
           :: claimed[i] && !lock[i] ->
#ifdef REGION_BEFORE_PINS
               STORE(CLAIMED, i, false);
               STORE(PIN, i, 0)
#else
               STORE(PIN, i, 0);
               STORE(CLAIMED, i, false)
#endif
           :: else
           fi;
           i++
       }
       FENCE /* it takes the lock from the kernel, and gives it back */
    :: i == REGIONS -> i = 0; break
    od
}

/* Goes on with what a dead coordinator has left: the words, the cells, the pins. */
inline adopt() {
    atomic {
        generation = index;
#ifndef ADOPTS_OLD_WORDS
        STORE(WORD, 1 - generation, 0);
#endif
        entry = word[generation];
        its_era = era
    }
    FENCE;
    scan();
    atomic {
        first = CELLS;
        if
        :: entry ->
            assert(cell[entry - 1]);
            first = entry - 1;
            two = large[cell[first]];
            filled = cell[first]
        :: else
        fi;
        /* From the lowest pin between two entries up to the next entry. */
        do
        :: i < CELLS ->
            if
            :: i == first ->
                kept = false;
                state[i] = PUBLISHED;
                if
                :: two -> i++; state[i] = TAIL
                :: else
                fi
            :: else ->
#ifndef ADOPTS_WITHOUT_PINS
                kept = kept || (seen & (1 << i));
#endif
                if
                :: kept -> state[i] = RANGE
                :: else -> free(i)
                fi
            fi;
            i++
        :: i == CELLS -> break
        od;
        i = 0; seen = 0; kept = false; two = false; first = 0
    }
}

inline work() {
    do
    :: operations < OPERATIONS ->
        atomic {
            operations++;
            if
            :: state[0] == FREE -> first = 0; two = false
            :: state[1] == FREE -> first = 1; two = false
            :: state[2] == FREE -> first = 2; two = false
            :: state[0] == FREE && state[1] == FREE -> first = 0; two = true
            :: state[1] == FREE && state[2] == FREE -> first = 1; two = true
            :: entry -> first = EVICT
            :: generation == 0 -> first = GROW
            :: clears < CLEARS -> first = CLEAR
            :: deaths < DEATHS && entry -> first = DIE
            :: first = SWEEP
            fi;
            if
            :: first < CELLS ->
                versions++;
                large[versions] = two;
                era_of[versions] = its_era;
                filled = versions;
                if
                :: deaths < DEATHS -> deaths++; died = died | (1 << versions); stillborn = stillborn | (1 << versions)
                :: true
                fi;
                state[first] = PUBLISHED;
                if
                :: two -> state[first + 1] = TAIL; STORE(CELL, first + 1, versions)
                :: else
                fi;
                STORE(CELL, first, versions);
                STORE(WORD, generation, first + 1);
                unpublish();
                entry = first + 1
            :: first == EVICT ->
                STORE(WORD, generation, 0);
                unpublish()
            :: first == GROW ->
                STORE(WORD, 1, entry);
                STORE(INDEX, 0, 1);
#ifndef NO_CLEARING
                STORE(WORD, 0, 0);
#endif
                generation = 1
            :: first == CLEAR ->
                clears++;
                its_era++;
                STORE(ERA, 0, its_era)
            :: first == DIE ->
                deaths++;
                died = died | (1 << filled) /* what its entry is */
            :: else
            fi;
            two = false
        }
        if
        :: first < GROW || first == SWEEP -> retire()
        :: first == CLEAR -> atomic { FENCE -> ended = its_era } /* it is answered */
        :: else /* growth leaves it to the next one */
        fi;
        first = 0;
#if READER_DEATHS > 0
        reap()
#endif
    :: operations == OPERATIONS -> break
    od
}

bool killed;

active [COORDINATOR_DEATHS] proctype Killer() { killed = true }

/* What was not in memory yet was not executed yet: each of a coordinator's stores is its last in one of the searches. */
inline lose_stores() {
    do
    :: coordinators_stores?_, _, _
    :: empty(coordinators_stores) -> break
    od
}

proctype Coordinator(bool is_next) {
    byte entry; /* 1 + the first cell of its block */
    byte generation, seen, i, upto, first, its_era, filled;
    bool kept, two;
    {
        if
        :: is_next -> adopt()
        :: else
        fi;
        work();
#if COORDINATOR_DEATHS > 0
        is_next /* the first one is killed, at the latest now */
#endif
    } unless { atomic { killed && !is_next -> lose_stores(); run Coordinator(true); goto gone } };
    /* In the end nothing is held, and nothing is lost. */
    do
    :: left == 0 -> break
    :: claimed[0] && !lock[0] || claimed[1] && !lock[1] || claimed[2] && !lock[2] -> reap()
    od;
    reap();
    retire();
    atomic {
        do
        :: i < CELLS -> assert(state[i] == FREE || state[i] == PUBLISHED || state[i] == TAIL); i++
        :: i == CELLS -> break
        od
    };
gone:
    skip
}

init {
    atomic {
        claimed[0] = true; lock[0] = true;
        claimed[1] = true; lock[1] = true;
        left = READERS;
        run Coordinator(false);
        run Reader(0, 0, 0);
        run Reader(1, 0, 0)
    }
}

/* Agreements: all who begin an era have the same members for it; nothing of the era before is under way when one begins, and nothing of the new
 * one before all are ready for it; nobody waits for ever, whoever dies at whatever step; and who is not slow is not left behind.
 *
 * stands for: src/watch/council.c: come is_complete move read_verdict await_verdict call_others fe_council_hold
 * stands for: src/watch/council.c: is_lost settles fe_council_settle
 * stands for: src/watch/wait.c: fe_watch_recall fe_watch_resume
 * stands for: src/group/agree.c: fe_group_adopt fe_group_rest agree_once ferry_group_agree
 *
 * Three ranks work in era 0. A rank dies (DEATHS of them at most): the step ends for nobody who works with it. The lowest that is left
 * notices by its own deadline, all others only because they are called. A rank that finds its step complete leaves. With SLOW rank
 * 2 may be later than any deadline, also where all are well, and rank 0 is impatient: then ranks may be left behind, and all else must hold. Proposals
 * to mask a rank, and ranks that come back, are left out: they change who is counted, not how.
 *
 * good: -DDEATHS=2 -DERAS=3
 * good: -DDEATHS=1 -DERAS=1 -DSLOW -DFUSED
 * broken: assertion -DDEATHS=0 -DERAS=2 -DSLOW -DFUSED -DBREAK_NO_SWAP       a decision is stored without looking for another
 * broken: assertion -DDEATHS=1 -DERAS=1 -DBREAK_DECIDED_FIRST                it is decided before the motion is written
 * broken: assertion -DDEATHS=1 -DERAS=2 -DBREAK_COME_BUSY                    comes with passes still under way
 * broken: assertion -DDEATHS=1 -DERAS=2 -DBREAK_NO_SETTLE                    works before the others are ready
 * broken: assertion -DDEATHS=0 -DERAS=2 -DSLOW -DBREAK_CALL_ANY_ERA          calls to an agreement that is over
 * broken: deadlock -DDEATHS=1 -DERAS=2 -DBREAK_NO_CALL                       leaves the others to their waits
 * broken: deadlock -DDEATHS=1 -DERAS=2 -DBREAK_WAIT_FOR_DEAD                 waits for a rank that is gone
 * broken: deadlock -DDEATHS=2 -DERAS=3 -DBREAK_SETTLE_WITH_DEAD              the same, when all that is left is to begin
 */
#define RANKS 3
#ifndef ERAS
#define ERAS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

byte came[RANKS], settled[RANKS], cleared[RANKS], era_of[RANKS];
bool busy[RANKS], called[RANKS], dead[RANKS], left[RANKS];
byte decided, author;    /* one word */
byte motion[RANKS * 2];  /* members, a bit a rank */
byte verdict[ERAS + 1];  /* that somebody has adopted; 0: nobody yet */
byte newest;             /* the latest era that somebody has come for */

#define IN(set, r)     (((set) >> (r)) & 1)
#define GONE(r)        (dead[r] || left[r])
#define IS_DEAD(r)     (IN(members, r) && dead[r])
#define SOMEBODY_DEAD  (IS_DEAD(0) || IS_DEAD(1) || IS_DEAD(2))
#define IS_LOWEST(r)   (((r) < 1 || GONE(0) || !IN(members, 0)) && ((r) < 2 || GONE(1) || !IN(members, 1)))

#ifdef BREAK_WAIT_FOR_DEAD
#define ACCOUNTED(r)   (!IN(members, r) || came[r] == era)
#else
#define ACCOUNTED(r)   (!IN(members, r) || came[r] == era || GONE(r))
#endif
#define COMPLETE       (ACCOUNTED(0) && ACCOUNTED(1) && ACCOUNTED(2))

#define SETTLED(r)     (!IN(members, r) || settled[r] >= era)
#define ALL_SETTLED    (SETTLED(0) && SETTLED(1) && SETTLED(2))
#define LOST(r)        (!SETTLED(r) && GONE(r))
#define SOMEBODY_LOST  (LOST(0) || LOST(1) || LOST(2))

#define UNDER_WAY(r)   (IN(members, r) && busy[r] && era_of[r] < era)

/* With FUSED loops over the ranks are one step. What they look at only grows, but for deaths. */
#ifdef FUSED
#define TOGETHER d_step
#else
#define TOGETHER
#endif

inline store_to_all() { /* a step's rows and notes */
    TOGETHER {
        i = 0;
        do
        :: i < RANKS -> d_step { assert(!IN(members, i) || cleared[i] >= era_of[me]); i++ }
        :: else -> break
        od;
        i = 0
    }
}

inline come() {
#ifndef BREAK_COME_BUSY
    busy[me] = false;
#endif
    atomic {
        came[me] = era;
        newest = (newest > era -> newest : era)
    }
}

inline call_others() {
    TOGETHER {
        i = 0;
        do
        :: i < RANKS ->
            d_step {
                if
#ifdef BREAK_CALL_ANY_ERA
                :: i != me && IN(members, i) && came[i] != era -> called[i] = true
#else
                :: i != me && IN(members, i) && came[i] != era && era_of[i] == era_of[me] -> called[i] = true
#endif
                :: else
                fi;
                i++
            }
        :: else -> break
        od;
        i = 0
    }
}

inline decide() {
    atomic {
        if
#ifdef BREAK_NO_SWAP
        :: true -> decided = era; author = me
#else
        :: decided == before -> decided = era; author = me
        :: else
#endif
        fi
    }
}

inline move() {
    TOGETHER {
        with = 0;
        i = 0;
        do
        :: i < RANKS -> d_step { with = with | ((came[i] == era && !GONE(i) && IN(members, i)) << i); i++ }
        :: else -> break
        od;
        i = 0
    }
#ifdef BREAK_DECIDED_FIRST
    decide();
    motion[me * 2 + era % 2] = with
#else
    motion[me * 2 + era % 2] = with;
    decide()
#endif
    ;
    with = 0
}

inline read_verdict() {
    do
    :: true ->
        atomic { before = decided; i = author };
        with = motion[i * 2 + before % 2];
        if
        :: decided == before -> break
        :: else
        fi
    od;
    i = 0
}

proctype rank(byte me) {
    byte i, era, before, with, members = 7;
    {
        era = 0;
work:
        busy[me] = true;
        store_to_all();
        do
        :: !SOMEBODY_DEAD && !called[me] -> goto leave /* the step is complete */
        :: SOMEBODY_DEAD && IS_LOWEST(me) -> break     /* its deadline has passed */
        :: called[me] -> atomic { assert(newest > era_of[me]); break }
#ifdef SLOW
        :: me == 0 && !SOMEBODY_DEAD -> break
#endif
        od;
again:
        before = decided;
        if
        :: before != era_of[me] -> goto outcome /* they have agreed without it */
        :: before == ERAS -> goto leave         /* enough */
        :: else
        fi;
        era = before + 1;
        come();
#ifndef BREAK_NO_CALL
        call_others();
#endif
        do
        :: decided != before -> break
        :: decided == before && COMPLETE -> move()
#ifdef SLOW
        :: decided == before && !COMPLETE && !ACCOUNTED(2) -> move()
#endif
        od;
#ifdef BREAK_COME_BUSY
        store_to_all();
        busy[me] = false;
#endif
outcome:
        read_verdict();
        era = before;
#ifdef SLOW
        if
        :: IN(with, me) && era > era_of[me]
        :: else -> goto leave /* refused */
        fi;
#else
        assert(IN(with, me) && era > era_of[me]);
#endif
        atomic {
            assert(verdict[era] == 0 || verdict[era] == with);
            verdict[era] = with;
            members = with;
            with = 0;
            assert(!UNDER_WAY(0) && !UNDER_WAY(1) && !UNDER_WAY(2));
            cleared[me] = era
        }
        atomic { era_of[me] = era; called[me] = false }
        settled[me] = era;
#ifdef BREAK_NO_SETTLE
        goto work;
#endif
        do
        :: ALL_SETTLED -> goto work
#ifndef BREAK_SETTLE_WITH_DEAD
        :: SOMEBODY_LOST -> goto again
#endif
        :: called[me] && !ALL_SETTLED -> goto again
#ifdef SLOW
        :: !SETTLED(2) && !SOMEBODY_LOST -> goto again
#endif
        od;
leave:
        atomic { left[me] = true; busy[me] = false; era = 0; before = 0; with = 0; members = 0 }
    } unless {
        dead[me]
    }
}

proctype death() {
    byte r, n = 0;
    do
    :: n < DEATHS ->
        atomic {
            if
            :: r = 0
            :: r = 1
            :: r = 2
            fi;
            if
            :: !GONE(r) -> dead[r] = true; busy[r] = false
            :: else
            fi;
            n++
        }
    :: true -> break
    od
}

init {
    atomic {
        run rank(0);
        run rank(1);
        run rank(2);
        run death()
    }
}

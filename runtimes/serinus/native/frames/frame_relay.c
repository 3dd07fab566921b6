/* Moves bytes between clients of gRPC and the native front: a loop over epoll(7), which a thread runs without the interpreter's lock.
 *
 * Theory of operation. A connection is two sockets, the client's and one to the front. What the client sends passes as far as
 * `frame_scan_pass` lets it; what the front answers passes unread. A side is read, at most SCRATCH bytes a turn, while nothing waits for
 * the other; so what waits of a connection is at most SCRATCH bytes each way, in memory that it has only meanwhile. The end of what the
 * client sends is told to the front, and answers go on. When the front has left, what it wrote goes out first. A client that takes
 * nothing of what waits for it for the send timeout is closed.
 *
 * Who calls what. `serinus_relay_run` belongs to one thread, and all that connections are is touched by it alone, but for three atomic
 * counters, which anybody reads, and `asked`: what another thread asks of a connection, which it puts on a list and wakes the first for.
 * That a connection is over, or is declined by the scan, is told once, at the end of a turn, when epoll can name it no more: it is put on a list for the
 * asker, whom another descriptor wakes, and is the asker's alone until it is released. So the thread waits for nobody, and least for the interpreter's
 * lock. Descriptors are closed here, but those of a declined connection, which go to whoever takes the report. */
#define _GNU_SOURCE
#include "frame_relay.h"

#if SERINUS_HAS_RELAY

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SCRATCH = 65536, READY = 64 };
enum { ADD = 1, DROP = 2, RELEASE = 4 };

typedef serinus_relay relay;
typedef serinus_connection connection;

typedef struct side {
    connection *of;
    int descriptor; /* -1: closed, or given away */
    uint32_t watched; /* events that epoll waits for */
    uint8_t is_known; /* epoll knows it: it tells of ends even where it waits for nothing */
} side;

typedef struct { /* bytes that wait */
    uint8_t *bytes;
    size_t at, length;
} waiting;

struct serinus_connection {
    serinus_counters counters; /* first, for Python */
    int64_t id;
    side client, front;
    waiting to_front; /* nothing of the client is read while it is not empty */
    waiting to_client; /* nor of the front */
    waiting tail; /* the beginning of a frame */
    frame_scan scan;
    int64_t due_ns; /* of `is_due`: when it is closed */
    connection *due_before, *due_after;
    connection *all_before, *all_after;
    connection *reported_after;
    _Atomic(uint32_t) asked;
    connection *asked_after;
    uint8_t state; /* RELAY_RUNNING, or why it is reported */
    uint8_t is_due;
    uint8_t has_client_ended; /* and the front is told */
    uint8_t has_front_ended;
    uint8_t is_leaving; /* the front takes nothing more; `due_ns` stays */
};

struct serinus_relay {
    int epoll, bell;
    int told; /* rings where `reported` has something */
    int64_t limit, timeout_ns, now_ns;
    connection *due_first, *due_last; /* in the order of `due_ns`, since all have the same time */
    connection *all;
    connection *ended_first, *ended_last; /* in this turn */
    _Atomic(connection *) reported; /* ended in turns before, and not taken */
    connection *taken; /* of the taker: of these it has not made events yet */
    _Atomic(connection *) asked;
    _Atomic(int) is_stopping;
    uint8_t scratch[SCRATCH];
};

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void note_heard(relay *r, connection *c) {
    atomic_store_explicit(&c->counters.heard_ns, r->now_ns, memory_order_relaxed);
}

static void note_sent(connection *c, size_t count) {
    const int64_t sent = atomic_load_explicit(&c->counters.sent, memory_order_relaxed) + (int64_t)count;
    atomic_store_explicit(&c->counters.sent, sent, memory_order_relaxed);
}

/* ---- what waits */

/* Let bytes wait after those that do, which are none of `bytes`; false: there is no memory. */
static int keep(waiting *w, const uint8_t *bytes, size_t count) {
    if (count == 0) return 1;
    uint8_t *all = malloc(w->length + count);
    if (all == NULL) return 0;
    if (w->length) memcpy(all, w->bytes + w->at, w->length);
    memcpy(all + w->length, bytes, count);
    free(w->bytes);
    *w = (waiting){all, 0, w->length + count};
    return 1;
}

static void take(waiting *w, size_t count) {
    w->at += count;
    w->length -= count;
    if (w->length) return;
    free(w->bytes);
    *w = (waiting){NULL, 0, 0};
}

/* Send to a socket what it takes now; -1: it takes nothing, ever. */
static ssize_t give(int descriptor, const uint8_t *bytes, size_t count) {
    ssize_t sent;
    do sent = send(descriptor, bytes, count, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : sent;
}

/* ---- when a connection is closed that does not move */

static void set_aside(relay *r, connection *c) {
    if (!c->is_due) return;
    c->is_due = 0;
    *(c->due_before ? &c->due_before->due_after : &r->due_first) = c->due_after;
    *(c->due_after ? &c->due_after->due_before : &r->due_last) = c->due_before;
}

static void set_due(relay *r, connection *c) {
    set_aside(r, c);
    c->is_due = 1;
    c->due_ns = r->now_ns + r->timeout_ns;
    c->due_before = r->due_last;
    c->due_after = NULL;
    *(r->due_last ? &r->due_last->due_after : &r->due_first) = c;
    r->due_last = c;
}

/* ---- beginning and end */

static void watch(relay *r, side *s, uint32_t events) {
    if (s->watched == events && s->is_known) return;
    struct epoll_event event = {.events = events, .data.ptr = s};
    const int how = s->is_known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (!s->is_known && events == 0) return; /* it has ended; there is nothing to wait for until it may be read again */
    if (epoll_ctl(r->epoll, how, s->descriptor, &event) == 0) {
        s->watched = events;
        s->is_known = 1;
    }
}

/* Before closing too: a process that was forked may hold the same socket open. */
static void unwatch(relay *r, side *s) {
    if (s->is_known) epoll_ctl(r->epoll, EPOLL_CTL_DEL, s->descriptor, NULL);
    s->is_known = 0;
    s->watched = 0;
}

static void close_side(side *s) {
    if (s->descriptor >= 0) close(s->descriptor);
    s->descriptor = -1;
}

/* Nothing more is done with a connection here. */
static void finish(relay *r, connection *c, uint8_t state) {
    if (c->state != RELAY_RUNNING) return;
    c->state = state;
    set_aside(r, c);
    unwatch(r, &c->client);
    unwatch(r, &c->front);
    if (state != RELAY_DECLINED) {
        close_side(&c->client);
        close_side(&c->front);
    }
    c->reported_after = NULL;
    *(r->ended_last ? &r->ended_last->reported_after : &r->ended_first) = c;
    r->ended_last = c;
}

static void forget(relay *r, connection *c) {
    *(c->all_before ? &c->all_before->all_after : &r->all) = c->all_after;
    if (c->all_after) c->all_after->all_before = c->all_before;
    close_side(&c->client);
    close_side(&c->front);
    free(c->to_front.bytes);
    free(c->to_client.bytes);
    free(c->tail.bytes);
    free(c->scan.messages);
    free(c);
}

static void begin(relay *r, connection *c) {
    c->all_before = NULL;
    c->all_after = r->all;
    if (r->all) r->all->all_before = c;
    r->all = c;
    watch(r, &c->client, EPOLLIN);
    watch(r, &c->front, EPOLLIN);
    if (!c->client.is_known || !c->front.is_known) finish(r, c, RELAY_OVER); /* no memory in the kernel */
}

static void take_asked(relay *r) {
    connection *next = atomic_exchange(&r->asked, NULL);
    while (next != NULL) {
        connection *c = next;
        next = c->asked_after; /* from here on it may be asked something anew */
        const uint32_t asked = atomic_exchange(&c->asked, 0);
        if (asked & ADD) begin(r, c);
        if (asked & DROP) finish(r, c, RELAY_OVER);
        if (asked & RELEASE) forget(r, c);
    }
}

static void ring(int bell) {
    const uint64_t one = 1;
    const ssize_t written = write(bell, &one, sizeof one);
    (void)written; /* it can only be full of rings */
}

static void silence(int bell) {
    uint64_t rings;
    const ssize_t drained = read(bell, &rings, sizeof rings);
    (void)drained; /* it may be silent */
}

static void ask(relay *r, connection *c, uint32_t what) {
    if (atomic_fetch_or(&c->asked, what) != 0) return; /* on the list, and the bell has rung */
    c->asked_after = atomic_load(&r->asked);
    while (!atomic_compare_exchange_weak(&r->asked, &c->asked_after, c)) {}
    ring(r->bell);
}

/* ---- the two ways */

/* The front takes nothing more: what it has said goes out, for as long as the client may take. */
static void leave(relay *r, connection *c) {
    if (c->is_leaving) return;
    c->is_leaving = 1;
    take(&c->to_front, c->to_front.length);
    take(&c->tail, c->tail.length);
    set_due(r, c);
}

static void read_client(relay *r, connection *c) {
    const size_t kept = c->tail.length;
    if (kept) memcpy(r->scratch, c->tail.bytes + c->tail.at, kept);
    const ssize_t got = recv(c->client.descriptor, r->scratch + kept, SCRATCH - kept, 0);
    if (got < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) finish(r, c, RELAY_OVER);
        return;
    }
    if (got == 0) {
        c->has_client_ended = 1;
        shutdown(c->front.descriptor, SHUT_WR);
        return;
    }
    note_heard(r, c);
    take(&c->tail, kept);
    const size_t length = kept + (size_t)got, passed = frame_scan_pass(&c->scan, r->scratch, length);
    atomic_store_explicit(&c->counters.has_data, c->scan.has_data, memory_order_relaxed);
    const ssize_t sent = passed ? give(c->front.descriptor, r->scratch, passed) : 0;
    if (sent < 0) {
        leave(r, c);
        return;
    }
    if (!keep(&c->to_front, r->scratch + sent, passed - (size_t)sent) || !keep(&c->tail, r->scratch + passed, length - passed))
        finish(r, c, RELAY_OVER);
    else if (c->scan.is_declined)
        finish(r, c, RELAY_DECLINED);
}

static void write_front(relay *r, connection *c) {
    const ssize_t sent = give(c->front.descriptor, c->to_front.bytes + c->to_front.at, c->to_front.length);
    if (sent < 0)
        leave(r, c);
    else
        take(&c->to_front, (size_t)sent);
}

static void front_ended(relay *r, connection *c) {
    c->has_front_ended = 1;
    if (c->to_client.length)
        leave(r, c);
    else
        finish(r, c, RELAY_OVER);
}

static void read_front(relay *r, connection *c) {
    const ssize_t got = recv(c->front.descriptor, r->scratch, SCRATCH, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) front_ended(r, c);
        return;
    }
    note_heard(r, c);
    const ssize_t sent = give(c->client.descriptor, r->scratch, (size_t)got);
    if (sent < 0 || !keep(&c->to_client, r->scratch + sent, (size_t)(got - sent))) {
        finish(r, c, RELAY_OVER);
        return;
    }
    note_sent(c, (size_t)sent);
    if (sent < got && !c->is_leaving) set_due(r, c);
}

static void write_client(relay *r, connection *c) {
    const ssize_t sent = give(c->client.descriptor, c->to_client.bytes + c->to_client.at, c->to_client.length);
    if (sent < 0) {
        finish(r, c, RELAY_OVER);
        return;
    }
    take(&c->to_client, (size_t)sent);
    note_sent(c, (size_t)sent);
    if (c->has_front_ended && !c->to_client.length)
        finish(r, c, RELAY_OVER);
    else if (!c->is_leaving && !c->to_client.length)
        set_aside(r, c);
    else if (!c->is_leaving && sent)
        set_due(r, c);
}

static int reads_client(const connection *c) { return !c->has_client_ended && !c->is_leaving && !c->to_front.length; }

static int reads_front(const connection *c) { return !c->has_front_ended && !c->to_client.length; }

static void turn(relay *r, side *s, uint32_t events) {
    connection *c = s->of;
    if (c->state != RELAY_RUNNING) return; /* it has ended in this turn */
    const int has_ended = (events & (EPOLLERR | EPOLLHUP)) != 0;
    if (s == &c->client) {
        if (has_ended) {
            finish(r, c, RELAY_OVER);
            return;
        }
        if (events & EPOLLOUT && c->to_client.length) write_client(r, c);
        if (c->state == RELAY_RUNNING && events & EPOLLIN && reads_client(c)) read_client(r, c);
    } else {
        if ((events & EPOLLOUT || has_ended) && c->to_front.length) write_front(r, c);
        if (reads_front(c)) {
            if (events & EPOLLIN || has_ended) read_front(r, c);
        } else if (has_ended) {
            leave(r, c);
            unwatch(r, s); /* else it would be told again and again, until the client takes what waits */
        }
    }
    if (c->state != RELAY_RUNNING) return;
    watch(r, &c->client, (reads_client(c) ? EPOLLIN : 0u) | (c->to_client.length ? EPOLLOUT : 0u));
    watch(r, &c->front, (reads_front(c) ? EPOLLIN : 0u) | (c->to_front.length ? EPOLLOUT : 0u));
}

/* ---- the thread */

/* Pass what has ended in this turn on to whoever takes it; from here on nothing of it is touched but what is asked. */
static void publish(relay *r) {
    if (r->ended_first == NULL) return;
    connection *before = atomic_load(&r->reported);
    do r->ended_last->reported_after = before;
    while (!atomic_compare_exchange_weak(&r->reported, &before, r->ended_first));
    r->ended_first = r->ended_last = NULL;
    if (before == NULL) ring(r->told);
}

SERINUS_EXPORT int32_t serinus_relay_told(const relay *r) { return r->told; }

SERINUS_EXPORT int32_t serinus_relay_take(relay *r, serinus_relay_event *events, int32_t most) {
    int32_t count = 0;
    if (r->taken == NULL) {
        silence(r->told); /* before the list is taken: what comes after it rings anew */
        r->taken = atomic_exchange(&r->reported, NULL);
    }
    for (; r->taken != NULL && count < most; count++) {
        connection *c = r->taken;
        r->taken = c->reported_after;
        events[count] = (serinus_relay_event){
            .id = c->id, .state = c->state, .client = c->client.descriptor, .front = c->front.descriptor,
            .has_begun = c->scan.has_begun, .has_data = c->scan.has_data, .message_count = c->scan.count, .messages = c->scan.messages,
            .to_front = c->to_front.length ? c->to_front.bytes + c->to_front.at : NULL, .to_front_bytes = (int64_t)c->to_front.length,
            .to_client = c->to_client.length ? c->to_client.bytes + c->to_client.at : NULL,
            .to_client_bytes = (int64_t)c->to_client.length,
            .tail = c->tail.length ? c->tail.bytes + c->tail.at : NULL, .tail_bytes = (int64_t)c->tail.length,
        };
        c->client.descriptor = c->front.descriptor = -1;
    }
    return count;
}

/* Whether a client would be found to take something, had this turn come to it: more may be ready than one takes, after a process has been stopped. */
static int takes_unseen(const connection *c) {
    struct pollfd client = {.fd = c->client.descriptor, .events = POLLOUT};
    return !c->is_leaving && poll(&client, 1, 0) > 0 && client.revents & POLLOUT;
}

static void close_due(relay *r) {
    while (r->due_first != NULL && r->due_first->due_ns <= r->now_ns) {
        connection *c = r->due_first;
        if (takes_unseen(c)) turn(r, &c->client, EPOLLOUT);
        if (c->is_due && c->due_ns <= r->now_ns) finish(r, c, c->is_leaving ? RELAY_OVER : RELAY_STALLED);
    }
}

static int next_ms(const relay *r) {
    if (r->due_first == NULL) return -1;
    const int64_t left_ms = (r->due_first->due_ns - r->now_ns + 999999) / 1000000;
    return left_ms < 0 ? 0 : left_ms > 3600000 ? 3600000 : (int)left_ms;
}

SERINUS_EXPORT void serinus_relay_run(relay *r) {
    struct epoll_event ready[READY];
    while (!atomic_load(&r->is_stopping)) {
        const int count = epoll_wait(r->epoll, ready, READY, next_ms(r));
        if (count < 0 && errno != EINTR) return; /* it is no epoll */
        r->now_ns = clock_ns();
        for (int i = 0; i < count; i++) {
            if (ready[i].data.ptr != NULL) {
                turn(r, ready[i].data.ptr, ready[i].events);
                continue;
            }
            silence(r->bell);
            take_asked(r);
        }
        close_due(r);
        publish(r);
    }
}

SERINUS_EXPORT relay *serinus_relay_make(int64_t limit, int64_t timeout_ns) {
    relay *r = calloc(1, sizeof *r);
    if (r == NULL) return NULL;
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    r->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->limit = limit;
    r->timeout_ns = timeout_ns;
    r->now_ns = clock_ns();
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (r->epoll >= 0 && r->bell >= 0 && r->told >= 0 && epoll_ctl(r->epoll, EPOLL_CTL_ADD, r->bell, &event) == 0) return r;
    if (r->epoll >= 0) close(r->epoll);
    if (r->bell >= 0) close(r->bell);
    if (r->told >= 0) close(r->told);
    free(r);
    return NULL;
}

SERINUS_EXPORT connection *serinus_relay_add(relay *r, int64_t id, int32_t client, int32_t front) {
    connection *c = calloc(1, sizeof *c);
    if (c == NULL) return NULL;
    c->id = id;
    c->client = (side){.of = c, .descriptor = client};
    c->front = (side){.of = c, .descriptor = front};
    c->scan.limit = r->limit;
    atomic_store(&c->counters.heard_ns, clock_ns());
    ask(r, c, ADD);
    return c;
}

SERINUS_EXPORT void serinus_relay_drop(relay *r, connection *c) { ask(r, c, DROP); }

SERINUS_EXPORT void serinus_relay_release(relay *r, connection *c) { ask(r, c, RELEASE); }

SERINUS_EXPORT void serinus_relay_stop(relay *r) {
    atomic_store(&r->is_stopping, 1);
    ring(r->bell);
}

SERINUS_EXPORT void serinus_relay_free(relay *r) {
    take_asked(r);
    while (r->all != NULL) {
        unwatch(r, &r->all->client);
        unwatch(r, &r->all->front);
        forget(r, r->all);
    }
    close(r->bell);
    close(r->told);
    close(r->epoll);
    free(r);
}

#else /* the relay in Python serves */

SERINUS_EXPORT void serinus_relay_run(serinus_relay *r) { (void)r; }
SERINUS_EXPORT int32_t serinus_relay_told(const serinus_relay *r) {
    (void)r;
    return -1;
}
SERINUS_EXPORT int32_t serinus_relay_take(serinus_relay *r, serinus_relay_event *events, int32_t most) {
    (void)r, (void)events, (void)most;
    return 0;
}
SERINUS_EXPORT serinus_relay *serinus_relay_make(int64_t limit, int64_t timeout_ns) {
    (void)limit, (void)timeout_ns;
    return NULL;
}
SERINUS_EXPORT serinus_connection *serinus_relay_add(serinus_relay *r, int64_t id, int32_t client, int32_t front) {
    (void)r, (void)id, (void)client, (void)front;
    return NULL;
}
SERINUS_EXPORT void serinus_relay_drop(serinus_relay *r, serinus_connection *c) { (void)r, (void)c; }
SERINUS_EXPORT void serinus_relay_release(serinus_relay *r, serinus_connection *c) { (void)r, (void)c; }
SERINUS_EXPORT void serinus_relay_stop(serinus_relay *r) { (void)r; }
SERINUS_EXPORT void serinus_relay_free(serinus_relay *r) { (void)r; }

#endif

/* The relay with a thread of its own, a thread for what clients and front say, and one that adds and drops connections: under AddressSanitizer, or
 * ThreadSanitizer, nobody touches what is another's.
 *
 * Each connection ends in one of all ways there are: client or front closes first, at any point; a client that takes nothing; a drop; a
 * message that is declined; the end of everything while all are busy. Prints how many ended in each way. */
#define _GNU_SOURCE
#include "frames/frame_relay.c"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>

enum { CONNECTIONS = 400, TOGETHER = 16, PIECE = 40000 };

static relay *handle;
static connection *added[CONNECTIONS];
static _Atomic(int) over[CONNECTIONS];
static _Atomic(int) outcomes[4];

static void hold(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s, errno %d\n", what, errno);
    abort();
}

static void *run_relay(void *unused) {
    (void)unused;
    serinus_relay_run(handle);
    return NULL;
}

static void take_reported(void) {
    serinus_relay_event events[3];
    int32_t count = 3;
    while (count == 3) {
        count = serinus_relay_take(handle, events, 3);
        for (int32_t i = 0; i < count; i++) {
            const serinus_relay_event *e = events + i;
            int64_t sum = 0;
            for (int64_t k = 0; k < e->to_front_bytes; k++) sum += e->to_front[k];
            for (int64_t k = 0; k < e->to_client_bytes; k++) sum += e->to_client[k];
            for (int64_t k = 0; k < e->tail_bytes; k++) sum += e->tail[k];
            for (int32_t k = 0; k < e->message_count; k++) sum += e->messages[k].remaining;
            hold(sum >= 0, "what was reported");
            if (e->state == RELAY_DECLINED) {
                hold(e->client >= 0 && e->front >= 0, "descriptors of a declined connection");
                close(e->client), close(e->front);
            } else {
                hold(e->client == -1 && e->front == -1, "descriptors are closed");
            }
            atomic_fetch_add(outcomes + e->state, 1);
            atomic_store(over + e->id, 1);
        }
    }
}

static void nonblocking(int descriptor) { hold(fcntl(descriptor, F_SETFL, O_NONBLOCK) == 0, "fcntl"); }

static void frame_of(uint8_t *at, uint32_t size, uint8_t kind, uint8_t flags, uint32_t stream) {
    const uint8_t head[SCAN_HEAD] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, kind, flags,
                                     (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
    memcpy(at, head, sizeof head);
    memset(at + sizeof head, 0, size);
}

/* What a client of that number says: a message in three frames, which the limit lets pass or not. */
static size_t says(int number, uint8_t *at) {
    size_t length = sizeof SCAN_PREFACE;
    memcpy(at, SCAN_PREFACE, length);
    for (int i = 0; i < 3; i++) {
        frame_of(at + length, 9000, SCAN_DATA, i == 2, 1);
        if (i == 0) at[length + SCAN_HEAD + 3] = (26995 >> 8) & 0xff, at[length + SCAN_HEAD + 4] = 26995 & 0xff;
        if (i == 1 && number % 5 == 4) at[length + 4] = SCAN_PADDED; /* declined within a message */
        length += SCAN_HEAD + 9000;
    }
    return length;
}

static void *be_peers(void *of) {
    int (*ends)[2] = of;
    uint8_t *bytes = malloc(PIECE), *taken = malloc(PIECE);
    for (int turn = 0; turn < 12; turn++) {
        for (int i = 0; i < TOGETHER; i++) {
            const int client = ends[i][0], front = ends[i][1], way = i % 8;
            if (client < 0) continue;
            const size_t length = says(i, bytes);
            if (turn < 6) {
                const size_t from = length * (size_t)turn / 6, to = length * (size_t)(turn + 1) / 6;
                const ssize_t sent = send(client, bytes + from, to - from, MSG_NOSIGNAL | MSG_DONTWAIT);
                (void)sent;
            }
            const ssize_t said = send(front, bytes, way == 1 ? PIECE / 2 : 100, MSG_NOSIGNAL | MSG_DONTWAIT);
            (void)said;
            ssize_t got = recv(front, taken, PIECE, MSG_DONTWAIT);
            if (way != 1) got = recv(client, taken, PIECE, MSG_DONTWAIT); /* the others take nothing, and are given up */
            (void)got;
            if (turn == 3 + i % 3 && way == 2) shutdown(client, SHUT_WR);
            if (turn == 4 + i % 5 && (way == 3 || way == 2)) close(front), ends[i][1] = -1;
            if (turn == 2 + i % 5 && way == 4) close(client), ends[i][0] = -1;
        }
    }
    free(bytes), free(taken);
    return NULL;
}

/* Has a front say more than its client takes, until the client's time runs. */
static void fill(connection *c, int front) {
    static const uint8_t said[PIECE];
    while (!c->is_due) {
        const ssize_t sent = send(front, said, sizeof said, MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)sent;
        read_front(handle, c);
    }
}

/* One thread, and a clock that is put on: as if the process had been stopped for longer than a client may take nothing. */
static void stop_for_long(void) {
    int client[2], front[2];
    static uint8_t taken[PIECE];
    hold(socketpair(AF_UNIX, SOCK_STREAM, 0, client) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, front) == 0, "sockets");
    nonblocking(client[1]), nonblocking(front[1]);
    connection *c = serinus_relay_add(handle, 0, client[1], front[1]);
    take_asked(handle);
    fill(c, front[0]);
    while (recv(client[0], taken, sizeof taken, MSG_DONTWAIT) > 0) {}
    handle->now_ns += handle->timeout_ns + 1;
    close_due(handle);
    hold(c->state == RELAY_RUNNING, "a client that has taken all meanwhile");
    hold(!c->to_client.length && !c->is_due && c->front.watched == EPOLLIN && c->client.watched == EPOLLIN, "goes on");
    fill(c, front[0]);
    handle->now_ns += handle->timeout_ns + 1;
    close_due(handle);
    hold(c->state == RELAY_STALLED, "one that has taken nothing");
    publish(handle);
    take_reported();
    atomic_store(over + 0, 0);
    serinus_relay_release(handle, c);
    close(client[0]), close(front[0]);
}

int main(void) {
    handle = serinus_relay_make(30000, 30 * 1000000);
    hold(handle != NULL, "make");
    stop_for_long();
    pthread_t thread;
    hold(pthread_create(&thread, NULL, run_relay, NULL) == 0, "thread");
    int64_t heard = 0;
    for (int first = 0; first < CONNECTIONS; first += TOGETHER) {
        int ends[TOGETHER][2];
        const int is_last = first + TOGETHER >= CONNECTIONS;
        for (int i = 0; i < TOGETHER; i++) {
            int client[2], front[2];
            hold(socketpair(AF_UNIX, SOCK_STREAM, 0, client) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, front) == 0, "sockets");
            nonblocking(client[1]), nonblocking(front[1]);
            added[first + i] = serinus_relay_add(handle, first + i, client[1], front[1]);
            hold(added[first + i] != NULL, "add");
            ends[i][0] = client[0], ends[i][1] = front[0];
        }
        pthread_t peers;
        hold(pthread_create(&peers, NULL, be_peers, ends) == 0, "thread");
        for (int i = 0; i < TOGETHER; i++) {
            connection *c = added[first + i];
            heard += atomic_load(&c->counters.heard_ns) + atomic_load(&c->counters.sent) + atomic_load(&c->counters.has_data);
            if (i % 8 == 5) serinus_relay_drop(handle, c);
        }
        if (is_last) serinus_relay_stop(handle); /* while they are busy */
        pthread_join(peers, NULL);
        for (int i = 0; i < TOGETHER && !is_last; i++) {
            if (i % 8 != 1 && i % 8 != 2 && i % 8 != 3 && i % 8 != 4) serinus_relay_drop(handle, added[first + i]);
            for (int turn = 0; !atomic_load(over + first + i); turn++) {
                hold(turn < 20000, "a connection that does not end");
                if (turn == 200) serinus_relay_drop(handle, added[first + i]); /* one whose ends do not oblige */
                struct pollfd told = {.fd = serinus_relay_told(handle), .events = POLLIN};
                poll(&told, 1, 1);
                take_reported();
            }
            serinus_relay_release(handle, added[first + i]);
        }
        for (int i = 0; i < TOGETHER; i++)
            for (int side = 0; side < 2; side++)
                if (ends[i][side] >= 0) close(ends[i][side]);
    }
    pthread_join(thread, NULL);
    take_reported();
    serinus_relay_free(handle);
    hold(heard > 0, "counters");
    printf("%d %d %d\n", outcomes[RELAY_OVER], outcomes[RELAY_STALLED], outcomes[RELAY_DECLINED]);
    return 0;
}

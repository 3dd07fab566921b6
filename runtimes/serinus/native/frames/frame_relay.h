/* What `frame_relay.c` does for Python (frame_relay.py has the same structures). */
#ifndef SERINUS_FRAME_RELAY_H
#define SERINUS_FRAME_RELAY_H

#include "../kernels.h"

/* epoll, and atomic numbers of 64 bits that every compiler has without a library of its own. */
#if defined(__linux__) && UINTPTR_MAX > 0xffffffffu
#define SERINUS_HAS_RELAY 1
#include "frame_scan.h"
#include <stdatomic.h>
#define RELAY_ATOMIC(type) _Atomic(type)
#else
#define SERINUS_HAS_RELAY 0
#define RELAY_ATOMIC(type) type
typedef struct scan_message scan_message;
#endif

typedef struct serinus_relay serinus_relay;
typedef struct serinus_connection serinus_connection;

/* What a connection begins with: anybody may read it until the connection is released. */
typedef struct {
    RELAY_ATOMIC(int64_t) heard_ns; /* when either side last said something; CLOCK_MONOTONIC */
    RELAY_ATOMIC(int64_t) sent;     /* bytes that the client has been sent */
    RELAY_ATOMIC(int32_t) has_data; /* a DATA frame has passed */
} serinus_counters;

enum { RELAY_RUNNING, RELAY_OVER, RELAY_STALLED, RELAY_DECLINED };

/* That a connection is over, and why. What it points at is there until the connection is released. */
typedef struct {
    int64_t id;
    int32_t state; /* RELAY_OVER; RELAY_STALLED: the client took nothing for its time; RELAY_DECLINED: all below is for who goes on */
    int32_t client, front; /* descriptors */
    int32_t has_begun, has_data; /* see frame_scan */
    int32_t message_count;
    const scan_message *messages; /* unfinished */
    const uint8_t *to_front, *to_client, *tail; /* passed and not taken; of the front and not taken; not passed */
    int64_t to_front_bytes, to_client_bytes, tail_bytes;
} serinus_relay_event;

/* A loop over no connections. `limit`: bytes of a message. NULL: there are no descriptors or no memory for it, or no epoll here. */
SERINUS_EXPORT serinus_relay *serinus_relay_make(int64_t limit, int64_t timeout_ns);
/* Moves bytes until it is stopped. For one thread. */
SERINUS_EXPORT void serinus_relay_run(serinus_relay *r);
/* A descriptor, the relay's, that may be read where something is to be taken; -1: there is no relay here. */
SERINUS_EXPORT int32_t serinus_relay_told(const serinus_relay *r);
/* Takes what is to be reported, and says how many events that is: `most`, while there may be more. For one thread at a time, another than that of
 * `serinus_relay_run`; what is taken when that has returned is all. */
SERINUS_EXPORT int32_t serinus_relay_take(serinus_relay *r, serinus_relay_event *events, int32_t most);
/* Takes a client's socket and one to the front, both not blocking. NULL: there is no memory, and the sockets stay the caller's. */
SERINUS_EXPORT serinus_connection *serinus_relay_add(serinus_relay *r, int64_t id, int32_t client, int32_t front);
/* Ends a connection, which is reported as any other. */
SERINUS_EXPORT void serinus_relay_drop(serinus_relay *r, serinus_connection *c);
/* Frees a connection that has been reported. */
SERINUS_EXPORT void serinus_relay_release(serinus_relay *r, serinus_connection *c);
/* Has `serinus_relay_run` return, now and ever after. */
SERINUS_EXPORT void serinus_relay_stop(serinus_relay *r);
/* Closes and frees everything; nobody runs it any more. */
SERINUS_EXPORT void serinus_relay_free(serinus_relay *r);

#endif

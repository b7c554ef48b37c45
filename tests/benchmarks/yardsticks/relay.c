/* The daemon reduced to its data plane, in C on libzmq: the most that its job leaves room for. A yardstick, no product.
 *
 * N warm WebSockets, one ROUTER, one thread, one epoll. A `call` (MessagePack, proto/wire.md) leases a connection or
 * waits for one in order; its frames are split, masks put on, JSON scanned whole, escapes undone; the bot gets
 * `accepted`, `delta` (what one pass brought is one delta; with batch one array for all streams), `done` with usage.
 *
 * Not there, each of which the daemon has: TLS, reconnecting, retries, deadlines, cancel, flow control (a bot that does
 * not read is memory), admission, routes, health, validation of what bots send, envelopes, JSON on the wire. A
 * connection that is lost ends its call as `failed upstream_lost`, and is not replaced. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { READ = 64 << 10, FRAME = 64 << 20, BOTS = 4096, BATCH = 256 };

typedef struct { unsigned char *at; size_t from, len, cap; } Buf;
typedef struct { const unsigned char *at; size_t len; } Span;
typedef struct Bot Bot;
struct Bot {
    unsigned char name[16];
    size_t name_len;
    int batch, dirty;
    unsigned held; /* maps in `out` */
    Buf out;       /* its first 3 bytes are kept free for the head of an array */
    Bot *next, *next_dirty;
};
typedef struct Call Call;
struct Call {
    Bot *bot;
    Call *next;
    char id[65], name[24];
    int stream;
    long seq, received_us, sent_us, first_us, in_tokens, out_tokens;
    double timeout_ms;
    Buf input, text; /* text: decoded, not sent yet */
};
typedef struct Conn Conn;
struct Conn {
    int fd, opcode, dirty;
    Buf in, message;
    Call *call;
    Conn *next_free, *next_dirty;
};

static void *router;
static int poller;
static Bot *bots[BOTS], *dirty_bots;
static Conn *idle, *dirty_conns;
static Call *queue, **queue_end = &queue;
static long calls;
static char session[24];

/* ------------------------------------------------------------------------------------------------- small things */

static void die(const char *what) {
    perror(what);
    exit(1);
}
static long now_us(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}
static unsigned char *room(Buf *b, size_t more) {
    if (b->from == b->len) b->from = b->len = 0;
    if (b->len + more > b->cap) {
        if (b->from) memmove(b->at, b->at + b->from, b->len - b->from);
        b->len -= b->from, b->from = 0;
        if (b->len + more > b->cap) {
            b->cap = 2 * (b->len + more);
            if (!(b->at = realloc(b->at, b->cap))) die("memory");
        }
    }
    return b->at + b->len;
}
static void add(Buf *b, const void *what, size_t len) {
    if (len) memcpy(room(b, len), what, len), b->len += len;
}
static void addb(Buf *b, unsigned byte) {
    *room(b, 1) = byte;
    b->len++;
}

/* ----------------------------------------------------------------------------------------------------- MessagePack */

static void put_number(Buf *b, int code, uint64_t n, int bytes) {
    addb(b, code);
    for (int i = bytes - 1; i >= 0; i--) addb(b, n >> (8 * i));
}
static void put_text(Buf *b, const void *text, size_t len) {
    if (len < 32) addb(b, 0xa0 | len);
    else if (len < 256) put_number(b, 0xd9, len, 1);
    else if (len < 65536) put_number(b, 0xda, len, 2);
    else put_number(b, 0xdb, len, 4);
    add(b, text, len);
}
static void put(Buf *b, const char *text) { put_text(b, text, strlen(text)); }
static void put_int(Buf *b, int64_t n) {
    if (n >= 0 && n < 128) addb(b, n);
    else put_number(b, 0xd3, n, 8);
}
static void pair(Buf *b, const char *name, const char *text) { put(b, name), text ? put(b, text) : addb(b, 0xc0); }
static void pair_int(Buf *b, const char *name, int64_t n) { put(b, name), put_int(b, n); }

typedef struct { int kind; /* i f s m a n t(rue) F(alse) */ int64_t n; double f; Span s; } Value;
static uint64_t big(const unsigned char *p, int bytes) {
    uint64_t n = 0;
    while (bytes--) n = n << 8 | *p++;
    return n;
}
/* The value at p; NULL: broken. Of maps and arrays only the head is taken, n is their size. */
static const unsigned char *take(const unsigned char *p, const unsigned char *end, Value *v) {
    if (p >= end) return NULL;
    unsigned c = *p++;
    static const signed char wide[32] = {0, -1, 0, 0, 1, 2, 4, -1, -1, -1, 4, 8, 1, 2, 4, 8,
                                         1, 2, 4, 8, -1, -1, -1, -1, -1, 1, 2, 4, 2, 4, 2, 4};
    *v = (Value){.kind = 'i'};
    if (c < 0x80 || c >= 0xe0) { v->n = (signed char)c; return p; }
    if (c < 0x90) { v->kind = 'm', v->n = c & 15; return p; }
    if (c < 0xa0) { v->kind = 'a', v->n = c & 15; return p; }
    uint64_t n = c & 31;
    if (c >= 0xc0) {
        int bytes = wide[c & 31];
        if (bytes < 0 || end - p < bytes) return NULL;
        n = big(p, bytes), p += bytes;
    }
    if (c == 0xc0) v->kind = 'n';
    else if (c == 0xc2 || c == 0xc3) v->kind = c & 1 ? 't' : 'F';
    else if (c == 0xca) { uint32_t bits = n; float f; memcpy(&f, &bits, 4), v->kind = 'f', v->f = f; }
    else if (c == 0xcb) v->kind = 'f', memcpy(&v->f, &n, 8);
    else if (c >= 0xcc && c <= 0xcf) v->n = n;
    else if (c == 0xd0) v->n = (int8_t)n;
    else if (c == 0xd1) v->n = (int16_t)n;
    else if (c == 0xd2) v->n = (int32_t)n;
    else if (c == 0xd3) v->n = n;
    else if (c < 0xc0 || (c >= 0xd9 && c <= 0xdb) || (c >= 0xc4 && c <= 0xc6)) {
        if ((uint64_t)(end - p) < n) return NULL;
        v->kind = c < 0xc4 || c > 0xc6 ? 's' : 'b', v->s = (Span){p, n}, p += n;
    } else v->kind = c >= 0xde ? 'm' : 'a', v->n = n;
    return p;
}
static const unsigned char *skip(const unsigned char *p, const unsigned char *end) {
    for (int64_t left = 1; left && p; left--) {
        Value v;
        p = take(p, end, &v);
        if (p && (v.kind == 'm' || v.kind == 'a')) {
            if (v.n > end - p) return NULL;
            left += v.kind == 'm' ? 2 * v.n : v.n;
        }
    }
    return p;
}

/* ------------------------------------------------------------------------------------------------------------ JSON */

static const unsigned char *string_end(const unsigned char *p, const unsigned char *end) { /* p behind the quote; its partner */
    for (;;) {
        const unsigned char *quote = memchr(p, '"', end - p), *back;
        if (!quote) return NULL;
        if (!(back = memchr(p, '\\', quote - p))) return quote;
        if ((p = back + 2) > end) return NULL;
    }
}
static const unsigned char *blanks(const unsigned char *p, const unsigned char *end) {
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
    return p;
}
static const unsigned char *value_end(const unsigned char *p, const unsigned char *end) {
    const unsigned char *from = p;
    for (long depth = 0; p < end; p++) {
        if (*p == '"') {
            if (!(p = string_end(p + 1, end))) return NULL;
            if (!depth) return p + 1;
        } else if (*p == '{' || *p == '[') depth++;
        else if (depth && (*p == '}' || *p == ']')) {
            if (!--depth) return p + 1;
        } else if (!depth && (*p == ',' || *p == '}' || *p == ']' || *p == ' ' || *p == '\n' || *p == '\r' || *p == '\t'))
            return p > from ? p : NULL;
    }
    return NULL;
}
static int members(Span object, int number, const char *const *names, Span *found) { /* 0: no object */
    const unsigned char *p = object.at, *end = p + object.len;
    memset(found, 0, number * sizeof *found);
    p = blanks(p, end);
    if (p >= end || *p++ != '{') return 0;
    for (p = blanks(p, end); p < end && *p == '"';) {
        const unsigned char *key = p + 1, *stop = string_end(key, end);
        if (!stop) return 0;
        p = blanks(stop + 1, end);
        if (p >= end || *p++ != ':') return 0;
        const unsigned char *value = p = blanks(p, end);
        if (!(p = value_end(p, end))) return 0;
        for (int i = 0; i < number; i++)
            if (!strncmp(names[i], (const char *)key, stop - key) && !names[i][stop - key]) found[i] = (Span){value, p - value};
        p = blanks(p, end);
        if (p < end && *p == '}') return 1;
        if (p >= end || *p++ != ',') return 0;
        p = blanks(p, end);
    }
    return p < end && *p == '}';
}
static int is(Span s, const char *text) { return s.len == strlen(text) && !memcmp(s.at, text, s.len); }
static long hex4(const unsigned char *p) {
    long n = 0;
    for (int i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef", *found = p[i] ? strchr(digits, p[i] | (p[i] > '9' ? 32 : 0)) : NULL;
        if (!found) return -1;
        n = n << 4 | (found - digits);
    }
    return n;
}
static int unescape(Buf *to, Span s) { /* a JSON string with its quotes, as UTF-8; 0: broken */
    if (s.len < 2 || *s.at != '"') return 0;
    const unsigned char *p = s.at + 1, *end = s.at + s.len - 1;
    unsigned char *out = room(to, s.len), *from = out; /* never longer than it was */
    for (const unsigned char *back; (back = memchr(p, '\\', end - p));) {
        memcpy(out, p, back - p), out += back - p;
        static const char names[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
        const char *plain = strchr(names, back[1]);
        p = back + 2;
        if (plain && back[1]) { *out++ = means[plain - names]; continue; }
        long n = back[1] == 'u' && end - p >= 4 ? hex4(p) : -1;
        if (n < 0) return 0;
        p += 4;
        if (n >= 0xd800 && n < 0xdc00) {
            long low = end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? hex4(p + 2) : -1;
            if (low < 0xdc00 || low > 0xdfff) n = 0xfffd;
            else n = 0x10000 + ((n - 0xd800) << 10) + (low - 0xdc00), p += 6;
        } else if (n >= 0xdc00 && n < 0xe000) n = 0xfffd;
        if (n < 0x80) *out++ = n;
        else if (n < 0x800) *out++ = 0xc0 | n >> 6, *out++ = 0x80 | (n & 63);
        else {
            if (n < 0x10000) *out++ = 0xe0 | n >> 12;
            else *out++ = 0xf0 | n >> 18, *out++ = 0x80 | (n >> 12 & 63);
            *out++ = 0x80 | (n >> 6 & 63), *out++ = 0x80 | (n & 63);
        }
    }
    memcpy(out, p, end - p), out += end - p;
    to->len += out - from;
    return 1;
}
static void escape(Buf *to, const unsigned char *p, size_t len) {
    addb(to, '"');
    for (const unsigned char *end = p + len; p < end; p++) {
        if (*p == '"' || *p == '\\') addb(to, '\\'), addb(to, *p);
        else if (*p < 0x20) {
            char text[8];
            snprintf(text, sizeof text, "\\u%04x", *p), add(to, text, 6);
        } else addb(to, *p);
    }
    addb(to, '"');
}

/* ------------------------------------------------------------------------------------------------- what bots are told */

static void send_out(Bot *b) {
    unsigned char *at = b->out.at + 3;
    size_t len = b->out.len - 3;
    if (!b->held) return;
    if (b->held > 1) at -= 3, len += 3, at[0] = 0xdc, at[1] = b->held >> 8, at[2] = b->held;
    if (zmq_send(router, b->name, b->name_len, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0) zmq_send(router, at, len, ZMQ_DONTWAIT);
    b->held = 0, b->out.len = 0;
}
static Buf *message(Bot *b, const char *type, int fields) { /* begin a map of so many fields beside its type */
    if (b->held && (!b->batch || b->held == BATCH)) send_out(b);
    if (!b->dirty) b->dirty = 1, b->next_dirty = dirty_bots, dirty_bots = b;
    if (!b->held) b->out.from = b->out.len = 0, add(&b->out, "\0\0\0", 3);
    b->held++;
    if (fields < 15) addb(&b->out, 0x80 | (fields + 1));
    else put_number(&b->out, 0xde, fields + 1, 2);
    pair(&b->out, "type", type);
    return &b->out;
}
static void say_delta(Call *c) {
    if (c->text.len && c->stream) {
        Buf *m = message(c->bot, "delta", 3);
        pair(m, "id", c->id), pair_int(m, "seq", c->seq++), put(m, "text"), put_text(m, c->text.at, c->text.len);
        c->text.len = 0;
    }
}
static void clocks(Buf *m) {
    pair(m, "session", session);
    pair_int(m, "mono_us", now_us(CLOCK_MONOTONIC)), pair_int(m, "wall_us", now_us(CLOCK_REALTIME));
}
static void say_end(Call *c, const char *code) { /* code NULL: done */
    say_delta(c);
    long now = now_us(CLOCK_MONOTONIC);
    Buf *m = message(c->bot, code ? "failed" : "done", code ? 8 : 16);
    pair(m, "id", c->id), pair(m, "call_id", c->name), put(m, "text");
    if (c->stream) addb(m, 0xc0);
    else put_text(m, c->text.at, c->text.len);
    pair_int(m, "deltas", c->seq);
    if (code) {
        pair(m, "code", code), pair(m, "message", "the yardstick gives up"), put(m, "retryable"), addb(m, 0xc2);
        put(m, "partial"), addb(m, c->seq ? 0xc3 : 0xc2);
    } else {
        pair(m, "finish", "stop"), put(m, "usage"), addb(m, 0x85);
        pair_int(m, "input_tokens", c->in_tokens), pair_int(m, "output_tokens", c->out_tokens), pair_int(m, "cached_tokens", 0);
        pair_int(m, "reasoning_tokens", 0), put(m, "estimated"), addb(m, 0xc2);
        pair(m, "cost_nano_usd", NULL), pair(m, "route", "default"), pair(m, "upstream", "c"), pair(m, "model", "gpt-5-mini");
        pair(m, "model_reported", NULL), pair_int(m, "attempts", 1), put(m, "backup_used"), addb(m, 0xc2);
        pair(m, "upstream_request_id", NULL), put(m, "timing"), addb(m, 0x85);
        pair_int(m, "queued_us", c->sent_us - c->received_us), pair_int(m, "attempt_us", c->sent_us - c->received_us);
        put(m, "first_delta_us"), c->first_us ? put_int(m, c->first_us - c->received_us) : addb(m, 0xc0);
        pair_int(m, "total_us", now - c->received_us), pair(m, "overhead_us", NULL);
        pair_int(m, "wall_us", now_us(CLOCK_REALTIME));
    }
    free(c->input.at), free(c->text.at), free(c);
}

/* --------------------------------------------------------------------------------------------------------- upstream */

static int frame_out(Conn *c, int opcode, const Buf *body) { /* masked, whole; 0: the connection is lost */
    static Buf out;
    static uint32_t key = 0x9e3779b9;
    unsigned char mask[4];
    key = key * 1664525 + 1013904223, memcpy(mask, &key, 4);
    out.from = out.len = 0, addb(&out, 0x80 | opcode);
    if (body->len < 126) addb(&out, 0x80 | body->len);
    else if (body->len < 65536) put_number(&out, 0xfe, body->len, 2);
    else put_number(&out, 0xff, body->len, 8);
    add(&out, mask, 4);
    unsigned char *to = room(&out, body->len);
    for (size_t i = 0; i < body->len; i++) to[i] = body->at[i] ^ mask[i & 3];
    out.len += body->len;
    for (size_t from = 0; from < out.len;) {
        ssize_t n = send(c->fd, out.at + from, out.len - from, MSG_NOSIGNAL);
        if (n > 0) from += n;
        else if (errno != EAGAIN) return 0; /* a request that the kernel does not take at once is waited for, busily */
    }
    return 1;
}
static void lost(Conn *c) {
    if (c->fd < 0) return;
    close(c->fd), c->fd = -1;
    if (c->call) say_end(c->call, "upstream_lost");
    c->call = NULL;
    for (Conn **p = &idle; *p; p = &(*p)->next_free)
        if (*p == c) { *p = c->next_free; break; }
}
static void lease(void) { /* calls that wait, to connections that are free */
    static Buf text;
    while (queue && idle) {
        Conn *c = idle;
        Call *call = queue;
        idle = c->next_free;
        if (!(queue = call->next)) queue_end = &queue;
        c->call = call, call->sent_us = now_us(CLOCK_MONOTONIC);
        static const char head[] = "{\"type\":\"response.create\",\"model\":\"gpt-5-mini\",\"store\":false,\"input\":";
        text.len = 0, add(&text, head, sizeof head - 1), escape(&text, call->input.at, call->input.len), addb(&text, '}');
        if (!frame_out(c, 1, &text)) lost(c);
    }
}
static int event(Conn *c, Span text) { /* 0: broken */
    static const char *const names[] = {"type", "delta", "response"}, *const parts[] = {"usage"},
                            *const usage[] = {"input_tokens", "output_tokens"};
    Span found[3], said[1], tokens[2];
    Call *call = c->call;
    if (!members(text, 3, names, found)) return 0;
    if (!call) return 1;
    if (is(found[0], "\"response.output_text.delta\"")) {
        if (!unescape(&call->text, found[1])) return 0;
        if (!call->first_us) call->first_us = now_us(CLOCK_MONOTONIC);
        if (!c->dirty) c->dirty = 1, c->next_dirty = dirty_conns, dirty_conns = c;
    } else if (is(found[0], "\"response.completed\"")) {
        if (members(found[2], 1, parts, said) && said[0].at && members(said[0], 2, usage, tokens) && tokens[0].at && tokens[1].at)
            call->in_tokens = atol((const char *)tokens[0].at), call->out_tokens = atol((const char *)tokens[1].at);
        say_end(call, NULL);
        c->call = NULL, c->next_free = idle, idle = c;
    } else if (is(found[0], "\"response.failed\"") || is(found[0], "\"response.incomplete\"") || is(found[0], "\"error\"")) {
        say_end(call, "upstream_error");
        c->call = NULL, c->next_free = idle, idle = c;
    }
    return 1;
}
static int frames(Conn *c) { /* 0: the connection is over */
    for (;;) {
        unsigned char *at = c->in.at + c->in.from;
        size_t have = c->in.len - c->in.from, start = 2;
        if (have < 2) return 1;
        int fin = at[0] >> 7, opcode = at[0] & 15;
        uint64_t len = at[1];
        if ((at[0] & 0x70) || len > 127 || (opcode > 2 && opcode < 8) || opcode > 10) return 0;
        if (len >= 126) {
            start = len == 126 ? 4 : 10;
            if (have < start) return 1;
            len = big(at + 2, start - 2);
        }
        if (len > FRAME || c->message.len + len > FRAME) return 0;
        if (have < start + len) return 1;
        Span text = {at + start, len};
        c->in.from += start + len;
        if (opcode == 8) return 0;
        if (opcode == 9 && !frame_out(c, 10, &(Buf){.at = at + start, .len = len})) return 0;
        if (opcode >= 9) continue;
        if ((opcode == 0) != (c->opcode != 0)) return 0;
        if (!fin || !opcode) add(&c->message, text.at, len), text = (Span){c->message.at, c->message.len};
        if (!fin) { c->opcode = c->opcode ? c->opcode : opcode; continue; }
        if (!event(c, text)) return 0;
        c->opcode = 0, c->message.len = 0;
    }
}
static void readable(Conn *c) {
    if (c->fd < 0) return;
    ssize_t n = recv(c->fd, room(&c->in, READ), READ, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) c->in.len += n;
    if (n <= 0 || !frames(c)) lost(c);
}
static Conn *connected(const char *where) { /* 127.0.0.1:PORT/path */
    const char *colon = strchr(where, ':'), *slash = strchr(where, '/');
    char text[2048];
    if (!colon || !slash) return NULL;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    Conn *c = calloc(1, sizeof *c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    int len = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: %.*s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Key: c2FtcGxlIG5vbmNlIDEyMw==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                       slash, (int)(slash - where), where);
    if (send(c->fd, text, len, MSG_NOSIGNAL) != len) die("handshake");
    size_t have = 0;
    while (have < 4 || memcmp(text + have - 4, "\r\n\r\n", 4)) /* byte by byte: nothing behind it is taken */
        if (have >= sizeof text - 1 || recv(c->fd, text + have++, 1, 0) != 1) die("handshake");
    if (memcmp(text, "HTTP/1.1 101", 12)) die("handshake refused");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c})) die("epoll");
    c->next_free = idle, idle = c;
    return c;
}

/* ------------------------------------------------------------------------------------------------- what bots say */

static Bot *bot_of(const unsigned char *name, size_t len) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < len; i++) hash = (hash ^ name[i]) * 16777619u;
    Bot **p = &bots[hash % BOTS];
    for (; *p; p = &(*p)->next)
        if ((*p)->name_len == len && !memcmp((*p)->name, name, len)) return *p;
    *p = calloc(1, sizeof **p);
    memcpy((*p)->name, name, len), (*p)->name_len = len;
    return *p;
}
static const unsigned char *one(Bot *bot, const unsigned char *p, const unsigned char *end) { /* a map; NULL: broken */
    enum { TYPE, ID, INPUT, STREAM, TIMEOUT, BATCHES, NONCE, FIELDS };
    static const char *const names[FIELDS] = {"type", "id", "input", "stream", "timeout_ms", "batch", "nonce"};
    Value head, name, v[FIELDS] = {{0}};
    if (!(p = take(p, end, &head)) || head.kind != 'm') return NULL;
    for (int64_t i = 0; i < head.n; i++) {
        if (!(p = take(p, end, &name)) || name.kind != 's') return NULL;
        const unsigned char *at = p;
        if (!(p = skip(p, end))) return NULL;
        for (int j = 0; j < FIELDS; j++)
            if (is(name.s, names[j])) take(at, end, &v[j]);
    }
    if (is(v[TYPE].s, "hello")) {
        bot->batch = v[BATCHES].kind == 't';
        Buf *m = message(bot, "welcome", 7);
        pair(m, "version", "yardstick"), pair_int(m, "wire", 1), clocks(m), put(m, "limits"), addb(m, 0x85);
        pair_int(m, "max_message_bytes", 1 << 20), pair_int(m, "max_batch", BATCH), pair_int(m, "max_calls_in_flight", 1 << 20);
        pair_int(m, "queue_max", 1 << 20), pair_int(m, "max_timeout_ms", 86400000);
        put(m, "routes"), addb(m, 0x91), put(m, "default");
    } else if (is(v[TYPE].s, "ping")) {
        Buf *m = message(bot, "pong", 4);
        clocks(m), put(m, "nonce");
        if (v[NONCE].kind == 's') put_text(m, v[NONCE].s.at, v[NONCE].s.len);
        else if (v[NONCE].kind == 'i') put_int(m, v[NONCE].n);
        else addb(m, 0xc0);
    } else if (is(v[TYPE].s, "call") && v[ID].kind == 's' && v[ID].s.len < sizeof((Call *)0)->id && v[INPUT].kind == 's') {
        Call *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        c->bot = bot, c->stream = v[STREAM].kind != 'F', c->received_us = now_us(CLOCK_MONOTONIC);
        c->timeout_ms = v[TIMEOUT].kind == 'f' ? v[TIMEOUT].f : v[TIMEOUT].kind == 'i' ? v[TIMEOUT].n : 30000;
        memcpy(c->id, v[ID].s.at, v[ID].s.len), add(&c->input, v[INPUT].s.at, v[INPUT].s.len);
        snprintf(c->name, sizeof c->name, "c-%ld", ++calls);
        Buf *m = message(bot, "accepted", 7);
        pair(m, "id", c->id), pair(m, "call_id", c->name), pair(m, "session", session), pair(m, "route", "default");
        pair_int(m, "recv_mono_us", c->received_us), pair_int(m, "deadline_mono_us", c->received_us + (int64_t)(1000 * c->timeout_ms));
        put(m, "ignored"), addb(m, 0x90);
        *queue_end = c, queue_end = &c->next;
    }
    return p;
}
static int drain(void) { /* whether anything came */
    int got = 0;
    for (zmq_msg_t name, part;; got = 1) {
        zmq_msg_init(&name);
        if (zmq_msg_recv(&name, router, ZMQ_DONTWAIT) < 0) return got;
        int parts = 1, more = zmq_msg_more(&name);
        for (zmq_msg_init(&part); more; parts++) {
            if (zmq_msg_recv(&part, router, ZMQ_DONTWAIT) < 0) break;
            more = zmq_msg_more(&part);
        }
        if (parts == 2 && zmq_msg_size(&name) <= sizeof((Bot *)0)->name) {
            Bot *bot = bot_of(zmq_msg_data(&name), zmq_msg_size(&name));
            const unsigned char *p = zmq_msg_data(&part), *end = p + zmq_msg_size(&part), *inside;
            Value head;
            if ((inside = take(p, end, &head)) && head.kind == 'a')
                for (int64_t i = 0; i < head.n && inside; i++) inside = one(bot, inside, end);
            else one(bot, p, end);
        }
        zmq_msg_close(&name), zmq_msg_close(&part);
    }
}
static int flush(void) { /* whether anything went */
    int sent = dirty_bots != NULL;
    for (; dirty_bots; dirty_bots = dirty_bots->next_dirty) dirty_bots->dirty = 0, send_out(dirty_bots);
    return sent;
}

/* -------------------------------------------------------------------------------------------------------- the loop */

static void over(int signal) {
    (void)signal;
    _exit(0);
}
int main(int argc, char **argv) {
    const char *endpoint = NULL, *where = NULL, *ready = NULL;
    int number = 1, for_s = 1800, queue_fd, none = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--endpoint")) endpoint = argv[i + 1];
        else if (!strcmp(argv[i], "--connect")) where = argv[i + 1];
        else if (!strcmp(argv[i], "--connections")) number = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--for-s")) for_s = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--ready-file")) ready = argv[i + 1];
        else endpoint = NULL, argc = 0;
    }
    if (!endpoint || strncmp(endpoint, "ipc://", 6) || !where || argc % 2 == 0 || for_s <= 0) {
        fputs("relay --endpoint ipc://... --connect 127.0.0.1:PORT/path [--connections N] [--for-s S] [--ready-file FILE]\n", stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN), signal(SIGALRM, over), signal(SIGTERM, over), signal(SIGINT, over);
    alarm(for_s);
    snprintf(session, sizeof session, "y-%lx", now_us(CLOCK_REALTIME));
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll");
    for (int i = 0; i < number; i++)
        if (!connected(where)) return 2;
    router = zmq_socket(zmq_ctx_new(), ZMQ_ROUTER);
    zmq_setsockopt(router, ZMQ_SNDHWM, &none, sizeof none), zmq_setsockopt(router, ZMQ_LINGER, &none, sizeof none);
    if (zmq_bind(router, endpoint)) die("bind");
    zmq_getsockopt(router, ZMQ_FD, &queue_fd, &(size_t){sizeof queue_fd});
    epoll_ctl(poller, EPOLL_CTL_ADD, queue_fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
    FILE *file = ready ? fopen(ready, "w") : NULL;
    if (file) fprintf(file, "%d\n", number), fclose(file);

    for (int got = 1, sent = 1;;) {
        for (; got || sent; lease(), sent = flush()) got = drain(); /* any call into ZeroMQ may eat the FD's edge */
        struct epoll_event events[256];
        int n = epoll_wait(poller, events, 256, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr) readable(events[i].data.ptr);
        for (; dirty_conns; dirty_conns = dirty_conns->next_dirty) {
            dirty_conns->dirty = 0;
            if (dirty_conns->call) say_delta(dirty_conns->call);
        }
        got = 1;
    }
}

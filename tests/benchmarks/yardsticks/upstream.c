/* An LLM service that is never the bottleneck: what benchmarks measure against, not a product.
 *
 * One thread, one epoll, loopback only. It speaks what `sidecar sim` speaks, in the same bytes, where nothing goes
 * wrong: WebSockets on /v1/responses (several streams by stream_id) and /v1/chat, HTTP/1.1 with keep-alive for
 * POST /v1/chat/completions and /v1/responses (streamed as server-sent events, or whole), GET /v1/models and /_stats.
 *
 * How it answers is set by flags, over them by the query of the URL, over that by [[name=value ...]] anywhere in the
 * request: tokens, cadence_us (0: as fast as the socket takes them), jitter (share of the cadence), ttft_us, stamp
 * (1: each token is CLOCK_MONOTONIC in microseconds and a blank, read right before its write); cadence_ms and
 * ttft_ms as well. Other names are ignored. At a cadence each token is one write(), with TLS one record.
 *
 * Garbage ends its connection, nothing else. A client that does not read has at most BACKLOG bytes kept for it.
 * Not there: compression, faults, max_age; `sidecar sim` has them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

enum { MESSAGE = 16 << 20, HEAD = 32 << 10, READ = 64 << 10, BACKLOG = 1 << 20, AHEAD = 256 << 10, BLOCK = 256 };
enum { BACKED_UP_US = 10000, BORN = 1790000000 }; /* BORN is not the clock: answers are the same in every run */

typedef struct { char *at; size_t from, len, cap; } Buf; /* what counts is at[from..len) */
typedef struct { const char *at; size_t len; } Span;
typedef struct { double tokens, cadence_us, jitter, ttft_us, stamp; } Manner;
typedef struct Stream Stream;
typedef struct Conn Conn;
enum Mode { HTTP, WS_RESPONSES, WS_CHAT };
struct Conn {
    int fd, opcode, busy, leaving, doomed;
    uint32_t armed;
    enum Mode mode;
    SSL *ssl;
    Buf in, out, message;
    Manner manner;
    Stream *first; /* in the order they came; of those with one lane only the first is answered */
    Conn *next_doomed;
};
enum Carrier { WEBSOCKET, EVENTS, WHOLE };
struct Stream {
    Conn *conn;
    Stream *next;
    enum Carrier carrier;
    int chat, running, usage, obfuscate, cut, offset;
    Manner manner;
    long total, sent, sequence, prompt_tokens;
    char digits[33], *model, *lane, *instructions, *store, *limit; /* JSON as it came; lane NULL: none */
    Buf head, tail, stamps;
    double base_us, due_us;
    long heap_at, flood_at; /* -1: not in it */
};

static struct { long accepted, handshakes, open, http, started, finished, stopped, in_flight, max_in_flight, bad, pings, pongs,
                tokens, bytes_in, bytes_out; } count;
static Manner fallback = {60, 16667, 0.0, 20000, 0};
static int poller;
static Buf page; /* the event that is being composed */
static Conn *doomed;
static Stream **heap, **floods;
static long heap_len, heap_cap, flood_len, flood_cap;
#ifdef WITH_TLS
static SSL_CTX *tls;
#endif
static const char *WORDS[] = {"Momentum", "fades", "while", "the", "spread", "stays", "wide", "and", "the", "order", "book",
    "thins", "above", "so", "the", "measured", "answer", "is", "to", "hold", "the", "position", "keep", "size", "small", "and",
    "wait", "for", "the", "next", "print", "before", "acting", "on", "a", "headline", "that", "may", "not", "last"};
enum { CYCLE = sizeof WORDS / sizeof *WORDS };

/* ------------------------------------------------------------------------------------------------- small things */

static void die(const char *what) { perror(what); exit(1); }

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static uint64_t dice(void) { /* splitmix64 */
    static uint64_t state = 7;
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static char *room(Buf *b, size_t more) {
    if (b->from == b->len) b->from = b->len = 0;
    if (b->len + more > b->cap) {
        if (b->from) memmove(b->at, b->at + b->from, b->len - b->from);
        b->len -= b->from, b->from = 0;
        if (b->len + more > b->cap / 2) {
            b->cap = 2 * (b->len + more);
            if (!(b->at = realloc(b->at, b->cap))) die("memory");
        }
    }
    return b->at + b->len;
}
static void add(Buf *b, const void *what, size_t len) { if (len) memcpy(room(b, len), what, len), b->len += len; }
static void adds(Buf *b, const char *text) { add(b, text, strlen(text)); }
static void addf(Buf *b, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int len = vsnprintf(NULL, 0, format, list);
    va_end(list);
    va_start(list, format);
    vsnprintf(room(b, len + 1), len + 1, format, list);
    va_end(list);
    b->len += len;
}
static void addn(Buf *b, unsigned long n, unsigned base) { /* for the hot path, where printf costs more than the rest */
    char text[24], *p = text + sizeof text;
    do *--p = "0123456789abcdef"[n % base]; while (n /= base);
    add(b, p, text + sizeof text - p);
}
static char *copy(Span s, const char *otherwise) { return s.at ? strndup(s.at, s.len) : otherwise ? strdup(otherwise) : NULL; }

/* JSON: the end of the value at p, NULL if there is none; nesting is counted, not recursed. */
static const char *string_end(const char *p, const char *end) {
    for (p++; p < end; p++) {
        if (*p == '\\') p++;
        else if (*p == '"') return p + 1;
        else if ((unsigned char)*p < 0x20) return NULL;
    }
    return NULL;
}
static const char *blanks(const char *p, const char *end) { while (p < end && strchr(" \t\r\n", *p) && *p) p++; return p; }
static const char *value_end(const char *p, const char *end) {
    if (p >= end) return NULL;
    if (*p == '"') return string_end(p, end);
    if (*p != '{' && *p != '[') {
        const char *from = p;
        while (p < end && *p && !strchr(",]} \t\r\n", *p)) p++;
        return p > from ? p : NULL;
    }
    for (long depth = 0; p < end;) {
        if (*p == '"') { if (!(p = string_end(p, end))) return NULL; continue; }
        if (*p == '{' || *p == '[') depth++;
        if ((*p == '}' || *p == ']') && --depth == 0) return p + 1;
        p++;
    }
    return NULL;
}
/* The members of the object `object` named in `names`; 0 if it is no object. A name that holds escapes is not found. */
static int members(Span object, int number, const char *const *names, Span *found) {
    const char *p = object.at, *end = p + object.len;
    memset(found, 0, number * sizeof *found);
    p = blanks(p, end);
    if (p >= end || *p++ != '{') return 0;
    p = blanks(p, end);
    if (p < end && *p == '}') return blanks(p + 1, end) == end;
    for (;;) {
        p = blanks(p, end);
        const char *key = p, *stop = p < end && *p == '"' ? string_end(p, end) : NULL;
        if (!stop) return 0;
        p = blanks(stop, end);
        if (p >= end || *p++ != ':') return 0;
        const char *value = p = blanks(p, end);
        if (!(p = value_end(p, end))) return 0;
        for (int i = 0; i < number; i++)
            if (strlen(names[i]) == (size_t)(stop - key - 2) && !memcmp(names[i], key + 1, stop - key - 2))
                found[i] = (Span){value, p - value};
        p = blanks(p, end);
        if (p < end && *p == '}') return blanks(p + 1, end) == end;
        if (p >= end || *p++ != ',') return 0;
    }
}
static int is(Span s, const char *text) { return s.at && s.len == strlen(text) && !memcmp(s.at, text, s.len); }

static int set(Manner *m, Span name, Span value) { /* one name=value; 0 when it is not ours or makes no sense */
    static const struct { const char *name; size_t at; double times, most; } known[] = {
        {"tokens", offsetof(Manner, tokens), 1, 1e7},       {"cadence_us", offsetof(Manner, cadence_us), 1, 1e11},
        {"jitter", offsetof(Manner, jitter), 1, 1},         {"ttft_us", offsetof(Manner, ttft_us), 1, 1e11},
        {"stamp", offsetof(Manner, stamp), 1, 1},           {"cadence_ms", offsetof(Manner, cadence_us), 1e3, 1e11},
        {"ttft_ms", offsetof(Manner, ttft_us), 1e3, 1e11},
    };
    char text[32], *stop;
    if (!value.len || value.len >= sizeof text) return 0;
    memcpy(text, value.at, value.len), text[value.len] = 0;
    double number = strtod(text, &stop);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (is(name, known[i].name)) {
            if (*stop || !(number >= 0) || number * known[i].times > known[i].most) return 0;
            *(double *)((char *)m + known[i].at) = number * known[i].times;
            return 1;
        }
    return 0;
}
static void set_all(Manner *m, const char *p, const char *end, const char *between) { /* name=value, separated */
    while (p < end) {
        const char *stop = p;
        while (stop < end && !strchr(between, *stop)) stop++;
        const char *equals = memchr(p, '=', stop - p);
        if (equals) set(m, (Span){p, equals - p}, (Span){equals + 1, stop - equals - 1});
        p = stop + 1;
    }
}
static void set_by_prompt(Manner *m, Span body) {
    const char *p = body.at, *end = p + body.len, *stop;
    while ((p = memmem(p, end - p, "[[", 2)) && (stop = memmem(p, end - p, "]]", 2)))
        set_all(m, p + 2, stop, " "), p = stop + 2;
}

/* -------------------------------------------------------------------------------------------- when a token is due */

static void heap_put(long at, Stream *s) { heap[at] = s, s->heap_at = at; }
static void heap_move(long at, Stream *s) {
    for (long up; at && heap[up = (at - 1) / 2]->due_us > s->due_us; at = up) heap_put(at, heap[up]);
    for (long down; (down = 2 * at + 1) < heap_len; at = down) {
        if (down + 1 < heap_len && heap[down + 1]->due_us < heap[down]->due_us) down++;
        if (heap[down]->due_us >= s->due_us) break;
        heap_put(at, heap[down]);
    }
    heap_put(at, s);
}
static void wake_at(Stream *s, double at_us) {
    s->due_us = at_us;
    if (s->heap_at < 0) {
        if (heap_len == heap_cap && !(heap = realloc(heap, (heap_cap = 2 * heap_cap + 64) * sizeof *heap))) die("memory");
        heap_put(heap_len++, s);
    }
    heap_move(s->heap_at, s);
}
static void unwake(Stream *s) {
    if (s->heap_at >= 0) {
        Stream *last = heap[--heap_len];
        if (last != s) heap_put(s->heap_at, last), heap_move(s->heap_at, last);
        s->heap_at = -1;
    }
    if (s->flood_at >= 0) {
        Stream *last = floods[--flood_len];
        floods[s->flood_at] = last, last->flood_at = s->flood_at, s->flood_at = -1;
    }
}

/* --------------------------------------------------------------------------------------------------- connections */

static void doom(Conn *c) { /* freed when nobody holds it any more, see main */
    if (!c->doomed) c->doomed = 1, c->next_doomed = doomed, doomed = c;
}
static void arm(Conn *c, uint32_t events) {
    if (c->armed == events) return;
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(poller, c->armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event);
    c->armed = events;
}
static ssize_t give(Conn *c, const void *what, size_t len) { /* 0: not now, -1: gone */
#ifdef WITH_TLS
    if (c->ssl) {
        ERR_clear_error();
        int n = SSL_write(c->ssl, what, len > 1 << 30 ? 1 << 30 : (int)len);
        if (n > 0) return n;
        int why = SSL_get_error(c->ssl, n);
        return why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ ? 0 : -1;
    }
#endif
    ssize_t n = send(c->fd, what, len, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN ? 0 : -1;
}
static void flush(Conn *c) {
    while (c->out.from < c->out.len && !c->doomed) {
        ssize_t n = give(c, c->out.at + c->out.from, c->out.len - c->out.from);
        if (n < 0) { doom(c); return; }
        if (n == 0) { arm(c, EPOLLIN | EPOLLOUT); return; }
        c->out.from += n, count.bytes_out += n;
    }
    if (c->doomed) return;
    arm(c, EPOLLIN);
    if (c->leaving == 1) { /* what was said arrives; what still comes is thrown away until the client goes */
        c->leaving = 2;
#ifdef WITH_TLS
        if (c->ssl) SSL_shutdown(c->ssl);
#endif
        shutdown(c->fd, SHUT_WR);
    }
}
static void frame_head(Buf *out, int opcode, size_t len) {
    unsigned char head[10] = {0x80 | opcode}, size = 2;
    if (len < 126) head[1] = len;
    else if (len < 65536) head[1] = 126, head[2] = len >> 8, head[3] = len, size = 4;
    else {
        head[1] = 127, size = 10;
        for (int i = 0; i < 8; i++) head[2 + i] = (uint64_t)len >> (56 - 8 * i);
    }
    add(out, head, size);
}
static void leave(Conn *c, int code) { /* by a close frame, 0: without */
    if (c->leaving) return;
    unsigned char body[2] = {code >> 8, code};
    if (code) frame_head(&c->out, 8, 2), add(&c->out, body, 2);
    for (Stream *s = c->first; s; s = s->next) unwake(s);
    c->leaving = 1;
    flush(c);
}

/* -------------------------------------------------------------------------------------------------- what is said */

static void emit(Stream *s, const char *kind) { /* `page`, in the stream's carrier */
    Buf *out = &s->conn->out;
    if (s->carrier == WEBSOCKET) frame_head(out, 1, page.len);
    else if (s->carrier == EVENTS) {
        size_t named = s->chat ? 0 : strlen(kind) + 8;
        addn(out, named + 6 + page.len + 2, 16), adds(out, "\r\n");
        if (named) adds(out, "event: "), adds(out, kind), adds(out, "\n");
        adds(out, "data: ");
    }
    add(out, page.at, page.len);
    if (s->carrier == EVENTS) adds(out, "\n\n\r\n");
    page.len = 0;
}
static void lane(Stream *s) { if (s->lane) addf(&page, ",\"stream_id\":%s", s->lane); }
static void event(Stream *s, const char *kind) { page.len = 0; addf(&page, "{\"type\":\"%s\",\"sequence_number\":%ld", kind, s->sequence++); }
static void end_event(Stream *s, const char *kind) { lane(s); adds(&page, "}"); emit(s, kind); }
static void place(Stream *s) { addf(&page, ",\"item_id\":\"msg_%s\",\"output_index\":0,\"content_index\":0", s->digits); }
static void part(const Buf *text) {
    adds(&page, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":\"");
    if (text) add(&page, text->at, text->len);
    adds(&page, "\"}");
}
static const char *status(Stream *s) { return s->cut ? "incomplete" : "completed"; }
static void item(Stream *s, const Buf *text) {
    addf(&page, "{\"id\":\"msg_%s\",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\",\"content\":[", s->digits,
         text ? status(s) : "in_progress");
    if (text) part(text);
    adds(&page, "]}");
}
static void response(Stream *s, const Buf *text) { /* the object; text NULL: in progress */
    addf(&page, "{\"id\":\"resp_%s\",\"object\":\"response\",\"created_at\":%d,\"status\":\"%s\",\"background\":false,\"error\":null,"
         "\"incomplete_details\":%s,\"instructions\":%s,\"max_output_tokens\":%s,\"model\":%s,\"output\":[",
         s->digits, BORN, text ? status(s) : "in_progress", text && s->cut ? "{\"reason\":\"max_output_tokens\"}" : "null",
         s->instructions, s->limit, s->model);
    if (text) item(s, text);
    addf(&page, "],\"parallel_tool_calls\":true,\"previous_response_id\":null,\"reasoning\":{\"effort\":null,\"summary\":null},"
         "\"service_tier\":\"default\",\"store\":%s,\"temperature\":1.0,\"text\":{\"format\":{\"type\":\"text\"}},"
         "\"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1.0,\"truncation\":\"disabled\",\"usage\":", s->store);
    if (text)
        addf(&page, "{\"input_tokens\":%ld,\"input_tokens_details\":{\"cache_write_tokens\":0,\"cached_tokens\":0},"
             "\"output_tokens\":%ld,\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":%ld}",
             s->prompt_tokens, s->sent, s->prompt_tokens + s->sent);
    else adds(&page, "null");
    adds(&page, ",\"user\":null,\"metadata\":{}");
    if (text && !s->cut) addf(&page, ",\"completed_at\":%d", BORN + 1);
    adds(&page, "}");
}
static void chat_base(Stream *s, Buf *to, const char *kind) {
    addf(to, "{\"id\":\"chatcmpl-%s\",\"object\":\"%s\",\"created\":%d,\"model\":%s,\"service_tier\":\"default\","
         "\"system_fingerprint\":\"fp_simulated\"", s->digits, kind, BORN, s->model);
}
static void chat_chunk(Stream *s, const char *delta, const char *finish) {
    page.len = 0;
    chat_base(s, &page, "chat.completion.chunk");
    addf(&page, ",\"choices\":[{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s}]}", delta, finish);
    emit(s, "");
}
static void chat_usage(Stream *s) {
    addf(&page, "\"usage\":{\"prompt_tokens\":%ld,\"completion_tokens\":%ld,\"total_tokens\":%ld,"
         "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}}",
         s->prompt_tokens, s->sent, s->prompt_tokens + s->sent);
}
static void opening(Stream *s) {
    if (s->carrier == EVENTS)
        addf(&s->conn->out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
             "x-request-id: req_%s\r\nTransfer-Encoding: chunked\r\n\r\n", s->digits);
    if (s->chat) {
        chat_base(s, &s->head, "chat.completion.chunk");
        adds(&s->head, ",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"");
        adds(&s->tail, "\"},\"logprobs\":null,\"finish_reason\":null}]}");
        chat_chunk(s, "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null", "null");
        return;
    }
    for (int i = 0; i < 2; i++) {
        const char *kind = i ? "response.in_progress" : "response.created";
        event(s, kind), adds(&page, ",\"response\":"), response(s, NULL), end_event(s, kind);
    }
    event(s, "response.output_item.added"), adds(&page, ",\"output_index\":0,\"item\":"), item(s, NULL);
    end_event(s, "response.output_item.added");
    event(s, "response.content_part.added"), place(s), adds(&page, ",\"part\":"), part(NULL);
    end_event(s, "response.content_part.added");
    adds(&page, "\",\"logprobs\":[]"), place(s), lane(s);
    if (s->obfuscate) adds(&page, ",\"obfuscation\":\"q7Rf0VtKx2Zb9LmN\"");
    adds(&page, "}"), add(&s->tail, page.at, page.len), page.len = 0;
}
static void say_piece(Stream *s, Buf *to, long index) {
    const char *word = WORDS[(s->offset + index) % CYCLE];
    if (index) add(to, " ", 1);
    adds(to, word);
}
static void token(Stream *s) { /* the next delta into the connection's buffer */
    page.len = 0;
    if (s->chat) add(&page, s->head.at, s->head.len);
    else {
        static const char kind[] = "{\"type\":\"response.output_text.delta\",\"sequence_number\":";
        add(&page, kind, sizeof kind - 1), addn(&page, s->sequence++, 10), add(&page, ",\"delta\":\"", 10);
    }
    if (s->manner.stamp) {
        size_t from = s->stamps.len;
        addn(&s->stamps, (unsigned long)now_us(), 10), add(&s->stamps, " ", 1);
        add(&page, s->stamps.at + from, s->stamps.len - from);
    } else say_piece(s, &page, s->sent);
    add(&page, s->tail.at, s->tail.len);
    emit(s, "response.output_text.delta");
    s->sent++, count.tokens++;
}
static void closing(Stream *s) {
    Buf text = s->stamps;
    s->stamps = (Buf){0};
    if (s->carrier == WHOLE) /* it was not said token by token */
        for (; s->sent < s->total; s->sent++, count.tokens++)
            if (s->manner.stamp) addn(&text, (unsigned long)now_us(), 10), adds(&text, " ");
            else say_piece(s, &text, s->sent);
    else if (!s->manner.stamp)
        for (long i = 0; i < s->sent; i++) say_piece(s, &text, i);
    page.len = 0;
    if (s->carrier == WHOLE) {
        if (s->chat) {
            chat_base(s, &page, "chat.completion");
            adds(&page, ",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\""), add(&page, text.at, text.len);
            addf(&page, "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"%s\"}],", s->cut ? "length" : "stop"), chat_usage(s);
        } else response(s, &text);
        addf(&s->conn->out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nx-request-id: req_%s\r\n\r\n",
             page.len, s->digits);
        emit(s, "");
    } else if (s->chat) {
        chat_chunk(s, "", s->cut ? "\"length\"" : "\"stop\"");
        if (s->usage) chat_base(s, &page, "chat.completion.chunk"), adds(&page, ",\"choices\":[],"), chat_usage(s), emit(s, "");
        adds(&page, "[DONE]"), emit(s, "");
    } else {
        event(s, "response.output_text.done"), place(s), adds(&page, ",\"text\":\""), add(&page, text.at, text.len);
        adds(&page, "\",\"logprobs\":[]"), end_event(s, "response.output_text.done");
        event(s, "response.content_part.done"), place(s), adds(&page, ",\"part\":"), part(&text);
        end_event(s, "response.content_part.done");
        event(s, "response.output_item.done"), adds(&page, ",\"output_index\":0,\"item\":"), item(s, &text);
        end_event(s, "response.output_item.done");
        const char *kind = s->cut ? "response.incomplete" : "response.completed";
        event(s, kind), adds(&page, ",\"response\":"), response(s, &text), end_event(s, kind);
    }
    if (s->carrier == EVENTS) adds(&s->conn->out, "0\r\n\r\n");
    free(text.at);
}

/* ------------------------------------------------------------------------------------------------------- streams */

static void consume(Conn *c);

static void release(Stream *s) {
    unwake(s);
    free(s->model), free(s->lane), free(s->instructions), free(s->store), free(s->limit);
    free(s->head.at), free(s->tail.at), free(s->stamps.at), free(s);
    count.in_flight--;
}
static int same(const char *a, const char *b) { return a == b || (a && b && !strcmp(a, b)); }
static void advance(Conn *c) { /* start what may start */
    for (Stream *s = c->first; s; s = s->next) {
        int behind = s->running;
        for (Stream *t = c->first; t != s && !behind; t = t->next) behind = same(t->lane, s->lane);
        if (behind) continue;
        s->running = 1;
        s->base_us = now_us() + s->manner.ttft_us;
        if (s->carrier == WHOLE) { wake_at(s, s->base_us + s->manner.cadence_us * (s->total ? s->total - 1 : 0)); continue; }
        opening(s);
        wake_at(s, s->base_us);
    }
}
static void finish(Stream *s) {
    Conn *c = s->conn;
    closing(s);
    for (Stream **p = &c->first; *p; p = &(*p)->next)
        if (*p == s) { *p = s->next; break; }
    release(s);
    count.finished++;
    flush(c);
    if (c->mode == HTTP) {
        if (c->busy == 2) leave(c, 0);
        c->busy = 0;
        if (!c->doomed && !c->leaving) consume(c);
    } else {
        advance(c);
        flush(c);
    }
}
static void due(Stream *s) { /* its instant has come: a token, the end, or from here on a flood */
    Conn *c = s->conn;
    if (s->carrier == WHOLE || s->sent >= s->total) { finish(s); return; }
    if (s->manner.cadence_us == 0) {
        unwake(s);
        if (flood_len == flood_cap && !(floods = realloc(floods, (flood_cap = 2 * flood_cap + 64) * sizeof *floods))) die("memory");
        floods[s->flood_at = flood_len++] = s;
        return;
    }
    if (c->out.len - c->out.from > BACKLOG) { wake_at(s, s->due_us + BACKED_UP_US); return; }
    flush(c); /* the opening goes by itself, as the stamp is read after it */
    token(s);
    flush(c);
    if (s->sent >= s->total) { finish(s); return; }
    s->base_us += s->manner.cadence_us;
    double swing = s->manner.cadence_us * s->manner.jitter;
    wake_at(s, s->base_us + swing * (2 * (dice() >> 11) * 0x1p-53 - 1));
}
static int pour(void) { /* a block of each flood whose client reads; 0: none could */
    int poured = 0;
    for (long i = 0; i < flood_len; i++) {
        Stream *s = floods[i];
        Conn *c = s->conn;
        if (c->doomed || c->out.len - c->out.from > AHEAD) continue;
        poured = 1;
        for (int n = 0; n < BLOCK && s->sent < s->total; n++) token(s);
        if (s->sent >= s->total) finish(s), i--; /* another stands in its place now */
        else flush(c);
    }
    return poured;
}
static int ask(Conn *c, Span body, int chat, int http) { /* a request; 0: it is none */
    static const char *const names[] = {"type", "model", "stream_id", "stream", "instructions", "store", "max_output_tokens",
                                        "max_completion_tokens", "max_tokens", "stream_options"};
    static const char *const options[] = {"include_usage", "include_obfuscation"};
    Span found[10], option[2] = {{0}};
    if (!members(body, 10, names, found) || !found[1].at || *found[1].at != '"') return 0;
    if (!chat && !http && !is(found[0], "\"response.create\"")) return 0;
    if (found[2].at && *found[2].at != '"') return 0;
    if (found[9].at) members(found[9], 2, options, option);
    Stream *s = calloc(1, sizeof *s);
    if (!s) die("memory");
    *s = (Stream){.conn = c, .chat = chat, .manner = c->manner, .heap_at = -1, .flood_at = -1, .model = copy(found[1], NULL),
                  .carrier = !http ? WEBSOCKET : is(found[3], "true") ? EVENTS : WHOLE, .instructions = copy(found[4], "null"),
                  .store = copy(found[5], "true"), .usage = is(option[0], "true"), .obfuscate = !is(option[1], "false"),
                  .lane = http || chat ? NULL : copy(found[2], NULL), .prompt_tokens = 1 + (long)body.len / 4};
    Span limit = chat ? found[7].at ? found[7] : found[8] : found[6];
    s->limit = copy(limit, "null");
    set_by_prompt(&s->manner, body);
    s->total = (long)s->manner.tokens;
    long most = strtol(s->limit, NULL, 10);
    if (most > 0 && most < s->total) s->total = most, s->cut = 1;
    snprintf(s->digits, sizeof s->digits, "%016lx%016lx", (unsigned long)dice(), (unsigned long)dice());
    s->offset = 5 * (int)(dice() % (CYCLE / 5));
    Stream **last = &c->first;
    while (*last) last = &(*last)->next;
    *last = s;
    count.started++;
    if (++count.in_flight > count.max_in_flight) count.max_in_flight = count.in_flight;
    advance(c);
    return 1;
}

/* ---------------------------------------------------------------------------------------------------- what is read */

static void sha1(const unsigned char *data, size_t len, unsigned char out[20]) { /* RFC 3174, len < 120 */
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0}, w[80];
    unsigned char block[128] = {0};
    size_t whole = len + 9 > 64 ? 128 : 64;
    memcpy(block, data, len), block[len] = 0x80, block[whole - 2] = len >> 5, block[whole - 1] = len << 3;
    for (size_t from = 0; from < whole; from += 64) {
        for (int i = 0; i < 16; i++) memcpy(&w[i], block + from + 4 * i, 4), w[i] = ntohl(w[i]);
#define TURN(x, n) ((x) << (n) | (x) >> (32 - (n)))
        for (int i = 16; i < 80; i++) w[i] = TURN(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? ((b & c) | (~b & d)) + 0x5A827999 : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                       : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC : (b ^ c ^ d) + 0xCA62C1D6;
            uint32_t t = TURN(a, 5) + f + e + w[i];
            e = d, d = c, c = TURN(b, 30), b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 5; i++) h[i] = htonl(h[i]);
    memcpy(out, h, 20);
}
static void upgrade(Conn *c, Span key) {
    static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char text[100], sum[21] = {0};
    char accept[29] = {0};
    memcpy(text, key.at, key.len), memcpy(text + key.len, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(text, key.len + 36, sum);
    for (int i = 0; i < 7; i++) {
        uint32_t three = sum[3 * i] << 16 | sum[3 * i + 1] << 8 | sum[3 * i + 2];
        for (int j = 0; j < 4; j++) accept[4 * i + j] = base64[three >> (18 - 6 * j) & 63];
    }
    accept[27] = '=';
    addf(&c->out, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n"
         "x-request-id: req_%016lx\r\n\r\n", accept, (unsigned long)dice());
    count.handshakes++, count.open++;
}
static void answer(Conn *c, int code, const char *reason, const Buf *body) {
    addf(&c->out, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n", code, reason, body->len,
         code < 400 ? "" : "Connection: close\r\n");
    add(&c->out, body->at, body->len);
}
static void refuse(Conn *c, int code, const char *reason) {
    count.bad++;
    page.len = 0;
    addf(&page, "{\"error\":{\"message\":\"%s\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}\n", reason);
    answer(c, code, reason, &page), page.len = 0;
    leave(c, 0);
}
static Span header(Span head, const char *name) {
    const char *p = head.at, *end = p + head.len;
    size_t len = strlen(name);
    while ((p = memmem(p, end - p, "\r\n", 2))) {
        p += 2;
        if ((size_t)(end - p) > len && p[len] == ':' && !strncasecmp(p, name, len)) {
            p += len + 1;
            while (p < end && (*p == ' ' || *p == '\t')) p++;
            const char *stop = memmem(p, end - p, "\r\n", 2);
            if (!stop) stop = end;
            return (Span){p, stop - p};
        }
    }
    return (Span){0};
}
static int holds(Span s, const char *word) {
    for (size_t i = 0; s.at && i + strlen(word) <= s.len; i++) if (!strncasecmp(s.at + i, word, strlen(word))) return 1;
    return 0;
}
static int ends(Span s, const char *tail) { return s.len >= strlen(tail) && !memcmp(s.at + s.len - strlen(tail), tail, strlen(tail)); }

static void statistics(Conn *c) {
    page.len = 0;
    addf(&page, "{\"accepted\":%ld,\"handshakes\":%ld,\"open\":%ld,\"http_requests\":%ld,\"calls_started\":%ld,\"calls_finished\":%ld,"
         "\"calls_stopped\":%ld,\"in_flight\":%ld,\"max_in_flight\":%ld,\"bad_requests\":%ld,\"pings\":%ld,\"pongs\":%ld,"
         "\"tokens\":%ld,\"bytes_in\":%ld,\"bytes_out\":%ld}\n", count.accepted, count.handshakes, count.open, count.http,
         count.started, count.finished, count.stopped, count.in_flight, count.max_in_flight, count.bad, count.pings, count.pongs,
         count.tokens, count.bytes_in, count.bytes_out);
    answer(c, 200, "OK", &page), page.len = 0;
}
/* Takes the chunks off a body, in place: its length, -1: more must come, -2: it is none; *used: bytes of it all. */
static long unchunk(char *at, size_t len, size_t *used, int moving) {
    size_t p = 0, size = 0;
    for (;;) {
        char *line = memmem(at + p, len - p, "\r\n", 2), *stop;
        if (!line) return len - p > 64 ? -2 : -1;
        unsigned long n = strtoul(at + p, &stop, 16);
        if (stop == at + p || n > MESSAGE || size + n > MESSAGE) return -2;
        p = line - at + 2;
        if (len - p < n + 2) return -1;
        if (memcmp(at + p + n, "\r\n", 2)) return -2; /* trailers are not understood */
        if (moving) memmove(at + size, at + p, n);
        p += n + 2, size += n;
        if (n == 0) { *used = p; return (long)size; }
    }
}
static int http(Conn *c) { /* one request; 0: not whole yet, or the connection is to go */
    char *at = c->in.at + c->in.from;
    size_t have = c->in.len - c->in.from;
    char *stop = have ? memmem(at, have, "\r\n\r\n", 4) : NULL;
    if (!stop) {
        if (have > HEAD || (have >= 3 && memcmp(at, "GET", 3) && memcmp(at, "POS", 3))) refuse(c, 400, "Not a request");
        return 0;
    }
    Span head = {at, stop - at};
    size_t used = head.len + 4;
    char *line = memmem(at, used, "\r\n", 2), *space = memchr(at, ' ', line - at);
    char *second = space ? memchr(space + 1, ' ', line - space - 1) : NULL;
    int get = !memcmp(at, "GET ", 4);
    if (!second || line - second != 9 || memcmp(second, " HTTP/1.1", 9) || (!get && memcmp(at, "POST ", 5))) {
        refuse(c, 400, "HTTP/1.1, GET or POST");
        return 0;
    }
    Span target = {space + 1, second - space - 1}, path = target, body = {at + used, 0};
    const char *query = memchr(target.at, '?', target.len);
    if (query) path.len = query - target.at;
    Span length = header(head, "content-length"), key = header(head, "sec-websocket-key");
    if (holds(header(head, "transfer-encoding"), "chunked")) {
        size_t bytes;
        long size = unchunk(at + used, have - used, &bytes, 0);
        if (size == -2) refuse(c, 400, "Bad chunks");
        if (size < 0) goto more;
        body.len = unchunk(at + used, have - used, &bytes, 1), used += bytes;
    } else if (length.at) {
        char *last;
        unsigned long size = strtoul(length.at, &last, 10);
        if (last != length.at + length.len || !length.len || size > MESSAGE) { refuse(c, 413, "Bad length"); return 0; }
        if (have - used < size) goto more;
        body.len = size, used += size;
    }
    c->in.from += used; /* the bytes stay where they are until more is read */
    count.http++;
    Manner manner = fallback;
    if (query) set_all(&manner, query + 1, target.at + target.len, "&");
    c->manner = manner;
    if (get && key.at && holds(header(head, "upgrade"), "websocket")) {
        int chat = ends(path, "/chat") || ends(path, "/ws/stream");
        if (key.len != 24 || (!chat && !ends(path, "/responses"))) { refuse(c, 404, "No such WebSocket"); return 0; }
        c->mode = chat ? WS_CHAT : WS_RESPONSES;
        upgrade(c, key);
    } else if (get && ends(path, "/_stats")) statistics(c);
    else if (get && ends(path, "/models")) {
        static char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-5-mini\",\"object\":\"model\",\"created\":1790000000,\"owned_by\":\"yardstick\"}]}\n";
        answer(c, 200, "OK", &(Buf){.at = models, .len = sizeof models - 1});
    } else if (!get && (ends(path, "/chat/completions") || ends(path, "/responses"))) {
        c->busy = holds(header(head, "connection"), "close") ? 2 : 1;
        if (!ask(c, body, ends(path, "/chat/completions"), 1)) { c->busy = 0; refuse(c, 400, "Not a completion"); return 0; }
    } else { refuse(c, 404, "No such path"); return 0; }
    if (!c->busy && holds(header(head, "connection"), "close")) leave(c, 0);
    return !c->leaving;
more:
    if (!c->leaving && have == head.len + 4 && holds(header(head, "expect"), "100-continue")) adds(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
    return 0;
}
static int frame(Conn *c) { /* one frame; 0: not whole yet, or the connection is to go */
    unsigned char *at = (unsigned char *)c->in.at + c->in.from;
    size_t have = c->in.len - c->in.from, start = 2;
    if (have < 2) return 0;
    int fin = at[0] >> 7, opcode = at[0] & 15;
    uint64_t len = at[1] & 127;
    if ((at[0] & 0x70) || !(at[1] & 128) || (opcode > 2 && opcode < 8) || opcode > 10) goto broken;
    if (opcode >= 8 && (!fin || len > 125)) goto broken;
    if (len >= 126) {
        size_t wide = len == 126 ? 2 : 8;
        if (have < (start += wide)) return 0;
        len = 0;
        for (size_t i = 0; i < wide; i++) len = len << 8 | at[2 + i];
    }
    if (len > MESSAGE || c->message.len + len > MESSAGE) { count.bad++; leave(c, 1009); return 0; }
    if (have < start + 4 + len) return 0;
    unsigned char *mask = at + start, *text = mask + 4;
    for (size_t i = 0; i < len; i++) text[i] ^= mask[i & 3];
    c->in.from += start + 4 + len;
    if (opcode == 8) {
        if (c->leaving) return 0;
        leave(c, len >= 2 ? text[0] << 8 | text[1] : 1000);
        return 0;
    }
    if (opcode == 9) { count.pings++, frame_head(&c->out, 10, len), add(&c->out, text, len); return 1; }
    if (opcode == 10) { count.pongs++; return 1; }
    if ((opcode == 0) != (c->opcode != 0)) goto broken;
    if (opcode) c->opcode = opcode;
    if (!fin || opcode == 0) add(&c->message, text, len);
    if (!fin) return 1;
    Span message = opcode ? (Span){(char *)text, len} : (Span){c->message.at, c->message.len};
    int ok = c->opcode == 1 && message.at && ask(c, message, c->mode == WS_CHAT, 0);
    c->opcode = 0, c->message.len = 0;
    if (!ok) { count.bad++; leave(c, 1007); return 0; }
    return 1;
broken:
    count.bad++;
    leave(c, 1002);
    return 0;
}
static void consume(Conn *c) { /* what was read, as far as it is whole; then what is to be said to it */
    while (!c->doomed && !c->leaving && (c->mode == HTTP ? !c->busy && http(c) : frame(c))) {}
    if (!c->doomed) flush(c);
}
static void readable(Conn *c) {
    for (int again = 1; again && !c->doomed;) {
        char *at = room(&c->in, READ);
        ssize_t n;
#ifdef WITH_TLS
        if (c->ssl) {
            ERR_clear_error();
            n = SSL_read(c->ssl, at, READ);
            if (n <= 0) {
                int why = SSL_get_error(c->ssl, (int)n);
                if (why == SSL_ERROR_WANT_WRITE) arm(c, EPOLLIN | EPOLLOUT);
                else if (why != SSL_ERROR_WANT_READ) doom(c);
                return;
            }
        } else
#endif
            if ((n = recv(c->fd, at, READ, 0)) <= 0) {
            if (n == 0 || errno != EAGAIN) doom(c);
            return;
        }
        count.bytes_in += n;
        if (c->leaving) { again = c->ssl != NULL; continue; }
        if (c->in.len - c->in.from + n > MESSAGE + HEAD) { doom(c); return; } /* sends while it should listen */
        c->in.len += n;
        consume(c);
        again = c->ssl != NULL; /* what OpenSSL holds back wakes nobody */
    }
}
static void reap(void) {
    for (Conn *c; (c = doomed);) {
        doomed = c->next_doomed;
        if (c->mode != HTTP) count.open--;
        for (Stream *s; (s = c->first);) c->first = s->next, count.stopped++, release(s);
#ifdef WITH_TLS
        if (c->ssl) SSL_free(c->ssl);
#endif
        close(c->fd);
        free(c->in.at), free(c->out.at), free(c->message.at), free(c);
    }
}
static void welcome(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        Conn *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        c->fd = fd, c->manner = fallback;
        count.accepted++;
#ifdef WITH_TLS
        if (tls && (c->ssl = SSL_new(tls))) SSL_set_fd(c->ssl, fd), SSL_set_accept_state(c->ssl);
#endif
        arm(c, EPOLLIN);
    }
}

/* -------------------------------------------------------------------------------------------------------- the loop */

static void over(int signal) { (void)signal; _exit(0); }

int main(int argc, char **argv) {
    const char *port_file = NULL, *cert = NULL, *key = NULL;
    int port = 0, for_s = 1800;
    for (int i = 1; i + 1 < argc; i += 2) {
        char name[32] = {0};
        if (strncmp(argv[i], "--", 2)) goto usage;
        strncpy(name, argv[i] + 2, sizeof name - 1);
        for (char *p = name; *p; p++) if (*p == '-') *p = '_';
        if (!strcmp(name, "port")) port = atoi(argv[i + 1]);
        else if (!strcmp(name, "port_file")) port_file = argv[i + 1];
        else if (!strcmp(name, "for_s")) for_s = (int)ceil(atof(argv[i + 1]));
        else if (!strcmp(name, "cert")) cert = argv[i + 1];
        else if (!strcmp(name, "key")) key = argv[i + 1];
        else if (!set(&fallback, (Span){name, strlen(name)}, (Span){argv[i + 1], strlen(argv[i + 1])})) goto usage;
    }
    if (argc % 2 == 0 || for_s <= 0) goto usage;
    if (cert || key) {
#ifdef WITH_TLS
        tls = SSL_CTX_new(TLS_server_method());
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
        if (!cert || !key || SSL_CTX_use_certificate_chain_file(tls, cert) != 1 || SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1) {
            ERR_print_errors_fp(stderr);
            return 1;
        }
#else
        fputs("built without TLS\n", stderr);
        return 1;
#endif
    }
    signal(SIGPIPE, SIG_IGN), signal(SIGALRM, over), signal(SIGTERM, over), signal(SIGINT, over);
    alarm(for_s);
    prctl(PR_SET_TIMERSLACK, 1ul); /* else a sleep is 50 us late */
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("port");
    getsockname(listener, (struct sockaddr *)&address, &(socklen_t){sizeof address});
    if ((poller = epoll_create1(EPOLL_CLOEXEC)) < 0) die("epoll");
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
    FILE *said = port_file ? fopen(port_file, "w") : stdout;
    if (!said) die("port file");
    fprintf(said, "%d\n", ntohs(address.sin_port)), fflush(said);
    if (port_file) fclose(said);

    for (int busy = 0;;) {
        struct epoll_event events[256];
        double wait = busy ? 0 : heap_len ? heap[0]->due_us - now_us() : 1e9;
        struct timespec patience = {0};
        if (wait > 0) patience.tv_sec = (time_t)(wait / 1e6), patience.tv_nsec = (long)(fmod(wait, 1e6) * 1e3);
        int n = epoll_pwait2(poller, events, 256, &patience, NULL);
        if (n < 0 && errno != EINTR) die("epoll_pwait2");
        for (int i = 0; i < n; i++) {
            Conn *c = events[i].data.ptr;
            if (!c) { welcome(listener); continue; }
            if (!c->doomed && events[i].events & EPOLLOUT) flush(c);
            if (!c->doomed && events[i].events & ~EPOLLOUT) readable(c);
        }
        reap();
        for (double now = now_us(); heap_len && heap[0]->due_us <= now;) {
            due(heap[0]);
            if (doomed) reap();
        }
        busy = pour();
        reap();
    }
usage:
    fputs("upstream [--port N] [--port-file FILE] [--for-s S] [--cert FILE --key FILE] [--tokens N] [--cadence-us N] [--jitter N]"
          " [--ttft-us N] [--stamp 0|1]\n", stderr);
    return 2;
}

/* A load generator that is not the bottleneck: one thread, epoll, requests made beforehand.

   load ADDRESS PORT CONNECTIONS[@RATE] WARM_S RUN_S SAMPLES_DIR REQUEST...

   Each REQUEST is a file with one whole HTTP request. If there is a file REQUEST.values, each of its lines names a part
   that is written anew before every sending: its kind (f: a float, d: decimal digits, b: three floats in base64), offset,
   size and scale. What is written follows from the request's number alone (values.py makes the same), and no two requests
   of a run have one. Every connection sends one, reads the reply to its last byte, and
   sends the next of the list; connection i starts with the i-th. Without a RATE the next one goes out at once: a closed
   loop. With one, requests a second over all connections, each has its time, and its latency counts from there, also
   if the connection was not free by then: an open loop, in which a server that stands still hides nothing. A line "begin" tells when the warm-up is over, "end"
   when the measured time is; then one JSON object. Only replies that end between the two count. A reply other than 200,
   or a connection that breaks, is a failure. Up to SAMPLES bodies, spread over the run, are kept and written to
   SAMPLES_DIR/REQUEST_INDEX.SERIAL for somebody else to judge.

   Covers: HTTP/1.1 replies with a Content-Length or in chunks, kept connections, reconnecting.
   Does not cover: what a body means, pipelining, TLS. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    HEAD_BYTES = 16384,
    SCRATCH_BYTES = 1 << 20,
    SAMPLES = 32,
    SAMPLED_BYTES = 64 << 20,
    FAILURES = 10000, /* a server that refuses everything is not worth the whole run */
};

/* A part of a request that is written anew before it is sent. */
struct part_of {
    char kind;
    size_t offset, size;
    double scale;
};

struct request {
    char *bytes;
    size_t size;
    struct part_of *parts;
    int part_count;
};

struct sample {
    char *bytes;
    size_t size, capacity;
    int request;
    uint64_t serial;
    int whole; /* a reply that the end of the run cut off is no sample */
};

/* What is expected next of a reply. */
enum part { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END };

struct connection {
    int fd, request;
    uint64_t serial;
    char *bytes; /* of the request that it sends */
    char **own;  /* its copy of each request that changes */
    size_t sent;
    uint64_t began;
    int resting; /* until `began`, which is when the next request is due */
    enum part part;
    char head[HEAD_BYTES];
    size_t head_size, left;
    struct sample *sample;
    int writing, last_chunk, closing;
};

static struct {
    struct sockaddr_in address;
    struct request *requests;
    struct connection *connections;
    int request_count, connection_count, epoll;
    uint64_t begin, end, serial;
    uint64_t pace; /* from one request of a connection to its next; 0: at once */
    uint64_t *took;
    size_t count, capacity, received;
    long failures, reconnects;
    char first_failure[200];
    struct sample samples[SAMPLES];
    int sampled;
    size_t sampled_bytes;
} run;

static char scratch[SCRATCH_BYTES];

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *more(void *old, size_t size) {
    void *fresh = realloc(old, size);
    if (!fresh) die("memory");
    return fresh;
}

/* The parts that change, of PATH.values; none without that file. */
static void read_parts(struct request *request, const char *path) {
    char name[4096];
    struct part_of part;
    snprintf(name, sizeof name, "%s.values", path);
    FILE *file = fopen(name, "r");
    if (!file) return;
    while (fscanf(file, " %c %zu %zu %lf", &part.kind, &part.offset, &part.size, &part.scale) == 4) {
        if (part.offset + part.size > request->size) die(name);
        request->parts = more(request->parts, (size_t)(request->part_count + 1) * sizeof part);
        request->parts[request->part_count++] = part;
    }
    fclose(file);
}

static struct request read_request(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status)) die(path);
    struct request request = {.bytes = more(NULL, (size_t)status.st_size), .size = (size_t)status.st_size};
    for (size_t got = 0; got < request.size;) {
        ssize_t n = read(fd, request.bytes + got, request.size - got);
        if (n <= 0) die(path);
        got += (size_t)n;
    }
    close(fd);
    read_parts(&request, path);
    return request;
}

/* 64 bits for one part of one request: splitmix64. */
static uint64_t random_bits(uint64_t serial, int place) {
    uint64_t z = (serial << 16 | (uint64_t)place) + 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static float value(uint64_t random, double scale) { return (float)(((double)(random & 0x1fffff) / 1048576.0 - 1.0) * scale); }

static void write_base64(char *to, const unsigned char *bytes) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 12; i += 3) {
        unsigned three = (unsigned)bytes[i] << 16 | (unsigned)bytes[i + 1] << 8 | bytes[i + 2];
        for (int shift = 18; shift >= 0; shift -= 6) *to++ = letters[three >> shift & 63];
    }
}

static void write_part(char *bytes, const struct part_of *part, uint64_t random) {
    char *to = bytes + part->offset;
    float floats[3] = {value(random, part->scale), 0, 0};
    if (part->kind == 'f') {
        memcpy(to, floats, sizeof *floats);
    } else if (part->kind == 'b') {
        floats[1] = value(random >> 21, part->scale), floats[2] = value(random >> 42, part->scale);
        write_base64(to, (const unsigned char *)floats);
    } else
        for (size_t i = part->size; i-- > 0; random /= 10) to[i] = (char)('0' + random % 10);
}

/* The bytes of this connection's next request, with values that no other has. Each connection has its copy: of a large
   request that is half sent the rest must stay. */
static char *fresh_bytes(struct connection *c) {
    struct request *request = &run.requests[c->request];
    char **own = &c->own[c->request];
    c->serial = ++run.serial;
    if (!request->part_count) return request->bytes;
    if (!*own) *own = memcpy(more(NULL, request->size), request->bytes, request->size);
    for (int i = 0; i < request->part_count; i++) write_part(*own, &request->parts[i], random_bits(c->serial, i));
    return *own;
}

static void watch(struct connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(run.epoll, operation, c->fd, &event)) die("epoll_ctl");
}

/* A blocking connect: it happens before the run, or after a failure that is counted. */
static void connect_it(struct connection *c) {
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&run.address, sizeof run.address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
    c->writing = 0;
    watch(c, EPOLL_CTL_ADD);
}

static void fail(const char *why, const char *detail) {
    if (!run.failures++) snprintf(run.first_failure, sizeof run.first_failure, "%s %.120s", why, detail);
    if (run.failures >= FAILURES) run.end = now();
}

/* Send what is left of the request; ask to be told when there is room again. */
static int push(struct connection *c) {
    struct request *request = &run.requests[c->request];
    while (c->sent < request->size) {
        ssize_t n = send(c->fd, c->bytes + c->sent, request->size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) return -1;
        c->sent += (size_t)n;
    }
    int writing = c->sent < request->size;
    if (writing != c->writing) {
        c->writing = writing;
        watch(c, EPOLL_CTL_MOD);
    }
    return 0;
}

static int start(struct connection *c) {
    c->sent = c->head_size = 0;
    c->part = HEAD;
    c->sample = NULL;
    c->resting = 0;
    c->bytes = fresh_bytes(c);
    if (!run.pace) c->began = now();
    return push(c);
}

/* The connection broke, or what came is no good reply: count it, then go on with a new connection. */
static void start_over(struct connection *c, const char *why, const char *detail) {
    do {
        close(c->fd);
        fail(why, detail);
        connect_it(c);
        why = "send";
        detail = "";
    } while (start(c) && now() < run.end);
}

/* After a whole reply: the next request, on a new connection if the server said that it ends this one. */
static void go_on(struct connection *c) {
    c->request = (c->request + 1) % run.request_count;
    if (c->closing) {
        close(c->fd);
        run.reconnects++;
        connect_it(c);
    }
    c->began += run.pace;
    c->resting = run.pace && c->began > now();
    if (!c->resting && start(c)) start_over(c, "send", strerror(errno));
}

static void finish(struct connection *c) {
    uint64_t time = now();
    if (c->sample) c->sample->whole = 1;
    if (time >= run.begin && time < run.end) {
        if (run.count == run.capacity) {
            run.capacity = run.capacity ? 2 * run.capacity : 1 << 20;
            run.took = more(run.took, run.capacity * sizeof *run.took);
        }
        run.took[run.count++] = time - c->began;
    }
}

/* Whether this reply's body is kept: evenly over the run, and bounded in bytes. */
static void choose(struct connection *c, size_t size) {
    uint64_t time = now();
    if (time < run.begin || run.sampled == SAMPLES || run.sampled_bytes + size > SAMPLED_BYTES) return;
    if (time - run.begin < (run.end - run.begin) / SAMPLES * (uint64_t)run.sampled) return;
    c->sample = &run.samples[run.sampled++];
    c->sample->request = c->request;
    c->sample->serial = c->serial;
}

static void keep(struct connection *c, const char *bytes, size_t size) {
    struct sample *sample = c->sample;
    if (!sample) return;
    if (sample->size + size > sample->capacity) {
        sample->capacity = 2 * (sample->size + size);
        sample->bytes = more(sample->bytes, sample->capacity);
    }
    memcpy(sample->bytes + sample->size, bytes, size);
    sample->size += size;
    run.sampled_bytes += size;
}

/* The head is whole: what follows it? */
static int judge_head(struct connection *c) {
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (strncmp(c->head, "HTTP/1.1 200", 12)) return -1;
    c->closing = strcasestr(c->head, "\r\nconnection: close") != NULL;
    if (length) {
        c->left = strtoull(length + 17, NULL, 10);
        c->part = BODY;
    } else if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) {
        c->part = CHUNK_SIZE;
        c->head_size = 0;
    } else
        return -1;
    choose(c, c->part == BODY ? c->left : 0);
    return 0;
}

/* Bytes up to and with the end mark go to c->head; returns how many were taken, sets *whole when the mark is there. */
static size_t gather(struct connection *c, const char *bytes, size_t size, const char *mark, int *whole) {
    size_t had = c->head_size, room = HEAD_BYTES - 1 - had, taken = size < room ? size : room;
    memcpy(c->head + had, bytes, taken);
    c->head[had + taken] = 0;
    size_t from = had > 3 ? had - 3 : 0, width = strlen(mark);
    char *at = memmem(c->head + from, had + taken - from, mark, width);
    c->head_size = had + taken;
    *whole = at != NULL;
    if (!at) return taken;
    c->head_size = (size_t)(at - c->head) + width;
    c->head[c->head_size] = 0;
    return c->head_size - had;
}

/* One step through the bytes at hand: how many were used, or -1. */
static ssize_t step(struct connection *c, const char *bytes, size_t size) {
    size_t used;
    int whole = 0;
    switch (c->part) {
    case HEAD:
        used = gather(c, bytes, size, "\r\n\r\n", &whole);
        if (whole ? judge_head(c) : c->head_size == HEAD_BYTES - 1) return -1;
        return (ssize_t)used;
    case CHUNK_SIZE:
        used = gather(c, bytes, size, "\r\n", &whole);
        if (!whole) return (ssize_t)used;
        c->left = strtoull(c->head, NULL, 16);
        c->last_chunk = c->left == 0;
        c->part = c->left ? CHUNK : CHUNK_END;
        c->head_size = 0;
        return (ssize_t)used;
    case CHUNK_END:
        used = gather(c, bytes, size, "\r\n", &whole);
        if (whole) c->head_size = 0, c->part = c->last_chunk ? BODY : CHUNK_SIZE;
        return (ssize_t)used;
    default:
        used = size < c->left ? size : c->left;
        keep(c, bytes, used);
        c->left -= used;
        if (!c->left && c->part == CHUNK) c->part = CHUNK_END;
        return (ssize_t)used;
    }
}

static int is_whole(struct connection *c) { return c->part == BODY && c->left == 0; }

/* All that waits on a connection; a whole reply starts the next request. */
static void pull(struct connection *c) {
    ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        start_over(c, "recv", n ? strerror(errno) : "closed by the server");
        return;
    }
    run.received += (size_t)n;
    for (ssize_t at = 0; at < n || is_whole(c);) {
        if (is_whole(c)) {
            finish(c);
            if (at < n) start_over(c, "bytes after the reply", "");
            else go_on(c);
            return;
        }
        ssize_t used = step(c, scratch + at, (size_t)(n - at));
        if (used < 0) {
            start_over(c, "not a good reply:", c->head);
            return;
        }
        at += used;
    }
}

/* Send what is due; returns when the next one is, or `end`. */
static uint64_t send_due(uint64_t end) {
    for (int i = 0; run.pace && i < run.connection_count; i++) {
        struct connection *c = &run.connections[i];
        if (c->resting && c->began <= now() && start(c)) start_over(c, "send", strerror(errno));
        if (c->resting && c->began < end) end = c->began;
    }
    return end;
}

static void serve_until(uint64_t end) {
    struct epoll_event events[256];
    for (uint64_t time = now(); time < end && time < run.end; time = now()) {
        uint64_t next = send_due(end), left = next > time ? next - time : 0;
        struct timespec wait = {.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
        int n = epoll_pwait2(run.epoll, events, 256, &wait, NULL);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            int fd = c->fd;
            if ((events[i].events & EPOLLOUT) && push(c)) start_over(c, "send", strerror(errno));
            if (c->fd == fd && (events[i].events & ~(uint32_t)EPOLLOUT)) pull(c);
        }
    }
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile_us(double share) {
    if (!run.count) return 0;
    size_t at = (size_t)(share * (double)run.count);
    return (double)run.took[at < run.count ? at : run.count - 1] / 1e3;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void write_samples(const char *folder) {
    for (int i = 0; i < run.sampled; i++) {
        struct sample *sample = &run.samples[i];
        char path[4096];
        if (!sample->whole) continue;
        snprintf(path, sizeof path, "%s/%d.%ju", folder, sample->request, (uintmax_t)sample->serial);
        FILE *file = fopen(path, "wb");
        if (!file || (sample->size && fwrite(sample->bytes, sample->size, 1, file) != 1) || fclose(file)) die(path);
    }
}

static void report(double elapsed, double cpu, uint64_t oldest) {
    for (char *at = run.first_failure; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') *at = ' ';
    qsort(run.took, run.count, sizeof *run.took, by_size);
    printf("{\"requests\": %zu, \"elapsed_s\": %.6f, \"failures\": %ld, \"reconnects\": %ld, \"first_failure\": \"%s\", "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"client_cpu_s\": %.6f, "
           "\"oldest_us\": %.1f, \"received_bytes\": %zu, \"sent\": %ju}\n",
           run.count, elapsed, run.failures, run.reconnects, run.first_failure, percentile_us(0.5), percentile_us(0.99),
           percentile_us(0.999), percentile_us(1), cpu, (double)oldest / 1e3, run.received,
           (uintmax_t)run.serial);
}

int main(int argc, char **argv) {
    if (argc < 8) return fputs("usage: load ADDRESS PORT CONNECTIONS WARM_S RUN_S SAMPLES_DIR REQUEST...\n", stderr), 2;
    int count = run.connection_count = atoi(argv[3]);
    char *rate = strchr(argv[3], '@');
    if (rate) run.pace = (uint64_t)(1e9 * count / atof(rate + 1));
    run.address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    if (!inet_aton(argv[1], &run.address.sin_addr)) die(argv[1]);
    run.request_count = argc - 7;
    run.requests = more(NULL, (size_t)run.request_count * sizeof *run.requests);
    for (int i = 0; i < run.request_count; i++) run.requests[i] = read_request(argv[7 + i]);
    run.epoll = epoll_create1(EPOLL_CLOEXEC);
    struct connection *connections = run.connections = calloc((size_t)count, sizeof *connections);
    if (!connections) die("memory");
    run.begin = now() + (uint64_t)(atof(argv[4]) * 1e9);
    run.end = run.begin + (uint64_t)(atof(argv[5]) * 1e9);
    for (int i = 0; i < count; i++) {
        connections[i].request = i % run.request_count;
        connections[i].own = calloc((size_t)run.request_count, sizeof(char *));
        if (!connections[i].own) die("memory");
        connect_it(&connections[i]);
        connections[i].began = now() + run.pace * (uint64_t)i / (uint64_t)count;
        connections[i].resting = run.pace > 0;
        if (!run.pace && start(&connections[i])) start_over(&connections[i], "send", strerror(errno));
    }
    serve_until(run.begin);
    puts("begin"), fflush(stdout);
    double cpu = cpu_s();
    uint64_t begun = now(), oldest = 0;
    run.received = 0;
    serve_until(run.end);
    uint64_t ended = now();
    puts("end"), fflush(stdout);
    for (int i = 0; i < count; i++)
        if (!connections[i].resting && ended - connections[i].began > oldest) oldest = ended - connections[i].began;
    cpu = cpu_s() - cpu;
    write_samples(argv[6]);
    report((double)(ended - begun) / 1e9, cpu, oldest);
    return 0;
}

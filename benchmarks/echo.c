/* The floor: what the kernel's TCP alone costs. An HTTP server that reads each request to its last byte and answers
   with a body that was made beforehand.

   echo BODY_BYTES

   Prints its port, then serves on 127.0.0.1 until it is killed. One thread, epoll. It looks for the end of the head and
   for Content-Length, nothing else, and throws away what it reads. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SCRATCH_BYTES = 1 << 20, CONNECTIONS = 1024 };

struct connection {
    size_t body_left, reply_left; /* in a request: what is still to come; in a reply: what is still to go */
};

static struct connection connections[CONNECTIONS];
static char scratch[SCRATCH_BYTES + 1];
static char *reply;
static size_t reply_size;
static int loop;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int fd, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(loop, operation, fd, &event)) die("epoll_ctl");
}

static void push(int fd) {
    struct connection *c = &connections[fd];
    while (c->reply_left) {
        ssize_t n = send(fd, reply + reply_size - c->reply_left, c->reply_left, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return watch(fd, EPOLL_CTL_MOD, EPOLLOUT);
        if (n < 0) return (void)close(fd);
        c->reply_left -= (size_t)n;
    }
    watch(fd, EPOLL_CTL_MOD, EPOLLIN);
}

static void pull(int fd) {
    struct connection *c = &connections[fd];
    ssize_t n = recv(fd, scratch, SCRATCH_BYTES, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return (void)close(fd);
    if (!c->body_left) {
        scratch[n] = 0;
        char *end = memmem(scratch, (size_t)n, "\r\n\r\n", 4), *length = strcasestr(scratch, "\r\ncontent-length:");
        if (!end || !length || length > end) return (void)close(fd); /* a head always comes whole from our own client */
        c->body_left = strtoull(length + 17, NULL, 10) + (size_t)(end + 4 - scratch);
    }
    c->body_left -= (size_t)n;
    if (c->body_left) return;
    c->reply_left = reply_size;
    ssize_t sent = send(fd, reply, reply_size, MSG_NOSIGNAL);
    c->reply_left -= sent > 0 ? (size_t)sent : 0;
    if (c->reply_left) push(fd);
}

static void admit(int listener) {
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (fd >= CONNECTIONS) return (void)close(fd);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connections[fd] = (struct connection){0};
    watch(fd, EPOLL_CTL_ADD, EPOLLIN);
}

int main(int argc, char **argv) {
    size_t body = argc > 1 ? strtoull(argv[1], NULL, 10) : 64;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 512)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    reply = calloc(1, body + 256);
    if (!reply) die("memory");
    reply_size = (size_t)sprintf(reply, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", body) + body;
    loop = epoll_create1(EPOLL_CLOEXEC);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    printf("%d\n", ntohs(address.sin_port)), fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(loop, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) admit(fd);
            else if (events[i].events & EPOLLOUT) push(fd);
            else pull(fd);
        }
    }
}

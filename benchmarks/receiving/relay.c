/* relay PID MICROSECONDS: a link between two network namespaces, "bench0" here and "bench1" in that of the process PID.
   What comes from bench1 waits for so long; nothing is lost or reordered. Stands in for tc netem where the kernel lacks
   it. Segments pass unsplit, as they do over veth. Says "up", and ends when its stdin does. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define LONGEST (65536 + 64)

struct packet {
    struct packet *next;
    int64_t due;
    ssize_t length;
    char bytes[];
};

static int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void failed(const char *what)
{
    perror(what);
    exit(1);
}

static int device(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    int file = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (file < 0 || ioctl(file, TUNSETIFF, &request) < 0 || ioctl(file, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0)
        failed(name);
    return file;
}

/* What a device that is down does not take is lost, as on any link. */
static void hand_on(int to, const char *bytes, ssize_t length)
{
    if (write(to, bytes, length) < 0)
        return;
}

int main(int count, char **words)
{
    static char bytes[LONGEST];
    char path[64];
    struct packet *first = NULL, **last = &first;
    if (count != 3)
        return 2;
    int64_t delay = atoll(words[2]) * 1000;
    int here = device("bench0");
    snprintf(path, sizeof path, "/proc/%s/ns/net", words[1]);
    int namespace = open(path, O_RDONLY | O_CLOEXEC);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET) < 0)
        failed(path);
    int there = device("bench1");
    prctl(PR_SET_TIMERSLACK, 1);
    puts("up");
    fflush(stdout);
    for (;;) {
        struct pollfd files[] = {{here, POLLIN, 0}, {there, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        int64_t pause = first == NULL ? 1000000000 : first->due - now();
        struct timespec wait = {0, pause < 0 ? 0 : pause > 999999999 ? 999999999 : pause};
        ppoll(files, 3, &wait, NULL);
        if (files[2].revents)
            return 0;
        ssize_t length;
        for (int turn = 0; turn < 64 && (length = read(here, bytes, LONGEST)) > 0; turn++)
            hand_on(there, bytes, length);
        for (int turn = 0; turn < 64 && (length = read(there, bytes, LONGEST)) > 0; turn++) {
            struct packet *packet = malloc(sizeof *packet + length);
            if (packet == NULL)
                failed("memory");
            packet->next = NULL;
            packet->due = now() + delay;
            packet->length = length;
            memcpy(packet->bytes, bytes, length);
            *last = packet;
            last = &packet->next;
        }
        while (first != NULL && first->due <= now()) {
            struct packet *packet = first;
            hand_on(here, packet->bytes, packet->length);
            first = packet->next;
            if (first == NULL)
                last = &first;
            free(packet);
        }
    }
}

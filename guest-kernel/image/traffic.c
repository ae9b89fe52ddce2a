// SPDX-License-Identifier: GPL-2.0
// What benchmarks send over a network, for either end: in a guest and on its
// host. See usage().

#define _GNU_SOURCE /* recvmmsg(), sendmmsg() */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_SAMPLES = 1 << 20,
	MAX_SECONDS = 3600,
	MAX_PER_S = 100000000,
	MAX_PAYLOAD = 65507, /* 65,535 without the headers of IP and UDP */
	BATCH = 64, /* datagrams of one system call */
	PACE_NS = 1000000, /* one timer for all that is due in it */
	ANSWER_SECS = 10, /* longer than any answer takes, in the lab too */
	FIRST_SECS = 30, /* for the first datagram */
	LOOK_MS = 20, /* how often a receiver that gets nothing sees if it is over */
	RECEIVE_BUFFER = 4 << 20, /* bytes; the default loses datagrams whenever another process runs */
};

static const uint64_t SECOND = 1000000000;

static void usage(FILE *to)
{
	fputs("Usage: traffic rr-serve PORT\n"
	      "       traffic rr ADDRESS PORT SECONDS\n"
	      "       traffic udp-count PORT SECONDS\n"
	      "       traffic udp-send ADDRESS PORT SIZE SECONDS [PACKETS_PER_S]\n"
	      "\n"
	      "  rr-serve   answers each byte that comes over TCP with a byte, until killed; any\n"
	      "             number of clients at a time\n"
	      "  rr         sends a byte and waits for the answer, again and again; then prints\n"
	      "             `rr PER_S P50_NS P99_NS`. Ends early after 1,048,576 of them.\n"
	      "  udp-count  prints `udp RECEIVED NS`: the datagrams that came within SECONDS of\n"
	      "             the first one, and the time from the first to the last. Prints\n"
	      "             `udp 0 0` and fails if none comes within 30 s.\n"
	      "  udp-send   prints `sent PACKETS NS`: the datagrams that it sent within SECONDS,\n"
	      "             64 for each system call, and the time from the first to the last\n"
	      "\n"
	      "ADDRESS is one of IPv4. SIZE is the payload of a datagram in bytes. A benchmark's\n"
	      "\"64 B\" is SIZE 18: the smallest frame of Ethernet, 64 bytes with its checksum and\n"
	      "60 without it, which is what an interface sees; 42 of them are headers. Above the\n"
	      "MTU less 28 bytes the sender's kernel cuts a datagram into fragments. With\n"
	      "PACKETS_PER_S all that is due is sent at once, at most 1,000 times a second.\n",
	      to);
}

static void die(const char *what)
{
	fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
	exit(1);
}

__attribute__((noreturn, format(printf, 1, 2))) static void wrong_usage(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("traffic: ", stderr);
	vfprintf(stderr, format, args);
	fputs("; see traffic --help\n", stderr);
	va_end(args);
	exit(2);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

static uint64_t number(const char *name, const char *word, uint64_t min, uint64_t max)
{
	uint64_t value;
	char *end;

	errno = 0;
	value = strtoull(word, &end, 10);
	if (word[0] < '0' || word[0] > '9' || *end || errno || value < min || value > max)
		wrong_usage("%s is '%s', and has to be a number from %llu to %llu", name, word,
			    (unsigned long long)min, (unsigned long long)max);
	return value;
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET };

	if (inet_pton(AF_INET, ip, &to.sin_addr) != 1)
		wrong_usage("ADDRESS is '%s', and has to be one of IPv4, such as 10.0.0.1", ip);
	to.sin_port = htons(number("PORT", port, 1, 65535));
	return to;
}

static void set(int fd, int level, int name, int value, const char *what)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		die(what);
}

/* From now on receives of @fd fail if nothing comes for that long. */
static void set_patience(int fd, int ms)
{
	struct timeval patience = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		die("SO_RCVTIMEO");
}

static int make_socket(int type)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

/* --- request and response -------------------------------------------------- */

static void answer(int client)
{
	char byte;

	/* A client that was killed with its machine says nothing any more. */
	set_patience(client, 6 * ANSWER_SECS * 1000);
	set(client, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
	while (read(client, &byte, 1) == 1 && write(client, &byte, 1) == 1)
		;
}

static void rr_serve(const char *port)
{
	struct sockaddr_in here = address("0.0.0.0", port);
	int fd = make_socket(SOCK_STREAM), client;
	pid_t parent = getpid(), child;

	signal(SIGCHLD, SIG_IGN);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)) || listen(fd, SOMAXCONN))
		die(port);
	for (;;) {
		client = accept(fd, NULL, NULL);
		if (client < 0 && errno != EINTR && errno != ECONNABORTED)
			die("accept");
		if (client < 0)
			continue;
		child = fork();
		if (child < 0)
			die("fork");
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() == parent)
				answer(client);
			_exit(0);
		}
		close(client);
	}
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void rr(const char *ip, const char *port, const char *secs)
{
	static uint32_t samples[MAX_SAMPLES];
	struct sockaddr_in server = address(ip, port);
	uint64_t length = number("SECONDS", secs, 1, MAX_SECONDS) * SECOND, start, before, after;
	int fd = make_socket(SOCK_STREAM);
	size_t n = 0;
	char byte = 0;

	set(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
	set_patience(fd, ANSWER_SECS * 1000);
	if (connect(fd, (struct sockaddr *)&server, sizeof(server)))
		die(ip);
	start = now_ns();
	for (after = start; after - start < length && n < MAX_SAMPLES; n++) {
		ssize_t got;

		before = after;
		if (write(fd, &byte, 1) != 1)
			die("request");
		got = read(fd, &byte, 1);
		if (got == 0)
			errno = ECONNRESET;
		if (got != 1)
			die("response");
		after = now_ns();
		/* ANSWER_SECS is more than 32 bits of nanoseconds hold. */
		samples[n] = after - before < UINT32_MAX ? after - before : UINT32_MAX;
	}
	qsort(samples, n, sizeof(*samples), by_value);
	printf("rr %.1f %u %u\n", n * 1e9 / (after - start), samples[n / 2], samples[n * 99 / 100]);
}

/* --- datagrams --------------------------------------------------------------- */

/* A batch whose messages all are the same @size bytes: nobody looks at them. */
static struct mmsghdr *make_batch(size_t size)
{
	static uint8_t bytes[MAX_PAYLOAD];
	static struct iovec buffer;
	static struct mmsghdr batch[BATCH];

	buffer = (struct iovec){ .iov_base = bytes, .iov_len = size };
	for (int i = 0; i < BATCH; i++)
		batch[i].msg_hdr = (struct msghdr){ .msg_iov = &buffer, .msg_iovlen = 1 };
	return batch;
}

static void udp_count(const char *port, const char *secs)
{
	struct sockaddr_in here = address("0.0.0.0", port);
	uint64_t length = number("SECONDS", secs, 1, MAX_SECONDS) * SECOND, received = 0;
	uint64_t begin, now, first = 0, last = 0;
	struct mmsghdr *batch = make_batch(MAX_PAYLOAD);
	int fd = make_socket(SOCK_DGRAM), size = RECEIVE_BUFFER;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		set(fd, SOL_SOCKET, SO_RCVBUF, size, "SO_RCVBUF");
	set_patience(fd, LOOK_MS);
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)))
		die(port);
	begin = now_ns();
	do {
		int got = recvmmsg(fd, batch, BATCH, MSG_WAITFORONE, NULL);

		now = now_ns();
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			die("receive");
		if (got <= 0)
			continue;
		if (!received)
			begin = first = now;
		/* What a full batch brings after the end is not part of it. */
		if (now - begin >= length)
			break;
		received += got;
		last = now;
	} while (now - begin < (received ? length : FIRST_SECS * SECOND));
	printf("udp %llu %llu\n", (unsigned long long)received, (unsigned long long)(last - first));
	if (!received) {
		fflush(stdout);
		fprintf(stderr, "traffic: no datagram came to port %s within %d s: is the sender's ADDRESS right?\n",
			port, FIRST_SECS);
		exit(1);
	}
}

static void sleep_until(uint64_t when)
{
	struct timespec until = { .tv_sec = when / SECOND, .tv_nsec = when % SECOND };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

static void udp_send(const char *ip, const char *port, const char *size, const char *secs,
		     const char *packets_per_s)
{
	struct sockaddr_in to = address(ip, port);
	struct mmsghdr *batch = make_batch(number("SIZE", size, 1, MAX_PAYLOAD));
	uint64_t length = number("SECONDS", secs, 1, MAX_SECONDS) * SECOND;
	uint64_t rate = packets_per_s ? number("PACKETS_PER_S", packets_per_s, 1, MAX_PER_S) : 0;
	uint64_t start, now, woken, last = 0, sent = 0;
	int fd = make_socket(SOCK_DGRAM);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		die(ip);
	for (start = woken = now = now_ns(); now - start < length; now = now_ns()) {
		uint64_t due = BATCH, next;
		int done;

		if (rate) {
			/* Of a rate below 100 million in an hour: fits in 64 bits. */
			due = (uint64_t)((now - start) / 1e9 * rate) + 1 - sent;
			if (!due) {
				next = start + (uint64_t)(sent * 1e9 / rate) + 1;
				woken = next > woken + PACE_NS ? next : woken + PACE_NS;
				sleep_until(woken < start + length ? woken : start + length);
				continue;
			}
		}
		done = sendmmsg(fd, batch, due < BATCH ? due : BATCH, 0);
		/* Nobody listens (yet, or any more): a network's loss like any other. */
		if (done < 0 && errno != ECONNREFUSED && errno != EINTR)
			die("send");
		if (done > 0) {
			sent += done;
			last = now_ns();
		}
	}
	printf("sent %llu %llu\n", (unsigned long long)sent, (unsigned long long)(last > start ? last - start : 0));
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int min, max; /* arguments after the name */
		const char *arguments;
	} verbs[] = {
		{ "rr-serve", 1, 1, "PORT" },
		{ "rr", 3, 3, "ADDRESS PORT SECONDS" },
		{ "udp-count", 2, 2, "PORT SECONDS" },
		{ "udp-send", 4, 5, "ADDRESS PORT SIZE SECONDS [PACKETS_PER_S]" },
	};
	const char *verb = argc > 1 ? argv[1] : "";
	size_t i;

	if (!strcmp(verb, "-h") || !strcmp(verb, "--help")) {
		usage(stdout);
		return 0;
	}
	if (argc < 2)
		wrong_usage("what to do is missing: rr-serve, rr, udp-count or udp-send");
	for (i = 0; i < 4 && strcmp(verb, verbs[i].name); i++)
		;
	if (i == 4)
		wrong_usage("'%s' is none of rr-serve, rr, udp-count and udp-send", verb);
	if (argc - 2 < verbs[i].min || argc - 2 > verbs[i].max)
		wrong_usage("%s takes %s, and got %d words", verb, verbs[i].arguments, argc - 2);
	switch (i) {
	case 0: rr_serve(argv[2]); break;
	case 1: rr(argv[2], argv[3], argv[4]); break;
	case 2: udp_count(argv[2], argv[3]); break;
	case 3: udp_send(argv[2], argv[3], argv[4], argv[5], argc > 6 ? argv[6] : NULL); break;
	}
	return 0;
}

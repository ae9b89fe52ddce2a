// SPDX-License-Identifier: Apache-2.0
// TCP request and response, one byte each way, one at a time: what latency is.
//
//	rr serve PORT              answer clients, one after the other, for ever
//	rr ask ADDRESS PORT SECS   ask for SECS seconds; print transactions per
//	                           second, median and 99th percentile in ns

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SAMPLES = 1 << 20 };

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int make_socket(const char *port, const char *ip, struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	if (fd < 0)
		die("socket");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	*to = (struct sockaddr_in){ .sin_family = AF_INET };
	to->sin_port = htons(atoi(port));
	if (inet_pton(AF_INET, ip, &to->sin_addr) != 1)
		die(ip);
	return fd;
}

static void serve(const char *port)
{
	struct sockaddr_in here;
	int fd = make_socket(port, "0.0.0.0", &here), client;
	char byte;

	if (bind(fd, (struct sockaddr *)&here, sizeof(here)) || listen(fd, 8))
		die("listen");
	while ((client = accept(fd, NULL, NULL)) >= 0) {
		while (read(client, &byte, 1) == 1 && write(client, &byte, 1) == 1)
			;
		close(client);
	}
	die("accept");
}

static void ask(const char *ip, const char *port, const char *secs)
{
	static uint32_t samples[MAX_SAMPLES];
	struct sockaddr_in server;
	int fd = make_socket(port, ip, &server);
	uint64_t start, end, before, after;
	size_t n = 0;
	char byte = 0;

	if (connect(fd, (struct sockaddr *)&server, sizeof(server)))
		die("connect");
	start = now_ns();
	end = start + strtoull(secs, NULL, 10) * 1000000000ull;
	for (after = start; after < end && n < MAX_SAMPLES; n++) {
		before = after;
		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			die("exchange");
		after = now_ns();
		samples[n] = after - before;
	}
	qsort(samples, n, sizeof(*samples), by_value);
	printf("rr %.1f %u %u\n", n * 1e9 / (after - start), samples[n / 2],
	       samples[n * 99 / 100]);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(argv[2]);
	else if (argc == 5 && !strcmp(argv[1], "ask"))
		ask(argv[2], argv[3], argv[4]);
	else
		return 2;
	return 0;
}

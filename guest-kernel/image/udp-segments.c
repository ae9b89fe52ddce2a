// SPDX-License-Identifier: GPL-2.0
// UDP datagrams that the kernel cuts from long sends (UDP_SEGMENT) and puts
// together for long receives (UDP_GRO), each checked byte by byte.
//
//	udp-segments receive PORT
//	udp-segments send ADDRESS PORT SIZE SEGMENTS SENDS
//
// The sender waits for an answer to each of its SENDS, of SEGMENTS datagrams
// of SIZE bytes. The receiver answers when all of one have arrived, and ends
// after the last with a line: "datagrams N receives N".

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { MAX_BYTES = 65536, ANSWER_SECS = 30, RECEIVE_SECS = 180 };

/* What each datagram begins with; a pattern that depends on number follows. */
struct header {
	uint32_t number; /* of the datagram, from 0 */
	uint32_t segments; /* datagrams of one send */
	uint32_t sends;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint8_t pattern(uint32_t number, uint32_t at)
{
	return (number * 2654435761u + at * 40503u) >> 13;
}

/* One whose receives fail after @secs seconds without a datagram. */
static int make_socket(int secs)
{
	struct timeval deadline = { .tv_sec = secs };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline)))
		die("socket");
	return fd;
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, ip, &to.sin_addr) != 1)
		die(ip);
	return to;
}

static void send_all(const char *ip, const char *port, uint32_t size, uint32_t segments,
		     uint32_t sends)
{
	static uint8_t bytes[MAX_BYTES];
	struct sockaddr_in to = address(ip, port);
	struct header header = { .segments = segments, .sends = sends };
	int fd = make_socket(ANSWER_SECS), segment_size = size;
	uint32_t at, answer;

	if (size < sizeof(header) || (uint64_t)size * segments > sizeof(bytes)) {
		fprintf(stderr, "that is too small, or too much for one send\n");
		exit(2);
	}
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) ||
	    setsockopt(fd, SOL_UDP, UDP_SEGMENT, &segment_size, sizeof(segment_size)))
		die("UDP_SEGMENT");
	while (header.number < segments * sends) {
		for (uint32_t i = 0; i < segments; i++, header.number++) {
			uint8_t *datagram = bytes + i * size;

			memcpy(datagram, &header, sizeof(header));
			for (at = sizeof(header); at < size; at++)
				datagram[at] = pattern(header.number, at);
		}
		if (send(fd, bytes, size * segments, 0) != (ssize_t)size * segments)
			die("send");
		if (recv(fd, &answer, sizeof(answer), 0) != sizeof(answer))
			die("answer");
		if (answer != header.number) {
			fprintf(stderr, "answer to %u, expected %u\n", answer, header.number);
			exit(1);
		}
	}
}

/* How many bytes each datagram of @message has, if it is several. */
static int segment_size(struct msghdr *message, int otherwise)
{
	struct cmsghdr *control;
	int size;

	for (control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
		if (control->cmsg_level != SOL_UDP || control->cmsg_type != UDP_GRO)
			continue;
		memcpy(&size, CMSG_DATA(control), sizeof(size));
		return size;
	}
	return otherwise;
}

static struct header check(const uint8_t *datagram, int size, uint32_t expected)
{
	struct header header;

	if (size < (int)sizeof(header)) {
		fprintf(stderr, "a datagram of %d bytes\n", size);
		exit(1);
	}
	memcpy(&header, datagram, sizeof(header));
	if (header.number != expected) {
		fprintf(stderr, "datagram %u, expected %u\n", header.number, expected);
		exit(1);
	}
	for (int at = sizeof(header); at < size; at++) {
		if (datagram[at] == pattern(header.number, at))
			continue;
		fprintf(stderr, "datagram %u differs at byte %d\n", header.number, at);
		exit(1);
	}
	return header;
}

static void receive_all(const char *port)
{
	static uint8_t bytes[MAX_BYTES];
	struct sockaddr_in here = address("0.0.0.0", port), from;
	uint32_t number = 0, receives = 0;
	int fd = make_socket(RECEIVE_SECS), on = 1;
	struct header header;

	if (setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof(on)))
		die("UDP_GRO");
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)))
		die("bind");
	do {
		char control[CMSG_SPACE(sizeof(int))];
		struct iovec buffer = { .iov_base = bytes, .iov_len = sizeof(bytes) };
		struct msghdr message = {
			.msg_name = &from,
			.msg_namelen = sizeof(from),
			.msg_iov = &buffer,
			.msg_iovlen = 1,
			.msg_control = control,
			.msg_controllen = sizeof(control),
		};
		int num_bytes = recvmsg(fd, &message, 0), size;

		if (num_bytes <= 0)
			die("receive");
		receives++;
		size = segment_size(&message, num_bytes);
		for (int at = 0; at < num_bytes; at += size, number++)
			header = check(bytes + at, size < num_bytes - at ? size : num_bytes - at, number);
		if (number % header.segments == 0 &&
		    sendto(fd, &number, sizeof(number), 0, (struct sockaddr *)&from,
			   message.msg_namelen) < 0)
			die("answer");
	} while (number < header.segments * header.sends);
	printf("datagrams %u receives %u\n", number, receives);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "receive"))
		receive_all(argv[2]);
	else if (argc == 7 && !strcmp(argv[1], "send"))
		send_all(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
	else
		return 2;
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
// How long reads of single pages take.
//
//	page-times FILE PAGES      read PAGES pages in an order that read-ahead cannot
//	                           guess, and again; for each time print a line
//	                           page-times p50 NS p90 NS p99 NS

#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int by_size(const void *one, const void *other)
{
	long a = *(const long *)one, b = *(const long *)other;
	return (a > b) - (a < b);
}

static long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	struct stat stat;
	int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1;
	if (fd < 0 || fstat(fd, &stat))
		err(1, "usage: page-times FILE PAGES");
	// Otherwise the guest reads ahead what it does not have.
	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	size_t num = atol(argv[2]), pages = stat.st_size / 4096;
	long *times = malloc(num * sizeof *times);
	for (int turn = 0; turn < 2; turn++) {
		uint64_t seed = 0x9e3779b97f4a7c15;
		for (size_t i = 0; i < num; i++) {
			char page[4096];
			// xorshift
			seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
			long start = now();
			if (pread(fd, page, sizeof page, seed % pages * 4096) != sizeof page)
				err(1, "%s", argv[1]);
			times[i] = now() - start;
		}
		qsort(times, num, sizeof *times, by_size);
		printf("page-times p50 %ld p90 %ld p99 %ld\n", times[num / 2], times[num * 9 / 10],
		       times[num * 99 / 100]);
	}
	return 0;
}

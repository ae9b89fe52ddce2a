// SPDX-License-Identifier: Apache-2.0
// The memory and processor time that VMs take, while they run.
//
//	watch-ram MS PID...        every MS milliseconds a line for each VM, until all
//	                           are gone: microseconds since 1970, PID, KiB of memory
//	                           of its guest RAM, milliseconds of processor

#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

// Guest RAM is a memory file, which has as many blocks as it takes memory.
static int open_ram(const char *pid)
{
	char path[300], target[300];
	snprintf(path, sizeof path, "/proc/%s/fd", pid);
	DIR *dir = opendir(path);
	if (!dir)
		return -1;
	int fd = -1;
	for (struct dirent *entry; fd < 0 && (entry = readdir(dir));) {
		snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, entry->d_name);
		ssize_t len = readlink(path, target, sizeof target - 1);
		target[len < 0 ? 0 : len] = 0;
		if (strstr(target, "alacrity-guest-ram"))
			fd = open(path, O_PATH);
	}
	closedir(dir);
	return fd;
}

// Of all threads, user and system; -1: it is gone.
static long cpu_ms(const char *pid)
{
	char path[64], text[1024];
	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	FILE *file = fopen(path, "r");
	if (!file)
		return -1;
	char *line = fgets(text, sizeof text, file);
	fclose(file);
	char *rest = line ? strrchr(line, ')') : NULL;
	char state;
	long user, system;
	if (!rest || sscanf(rest, ") %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld %ld",
			    &state, &user, &system) != 3 || state == 'Z')
		return -1;
	return (user + system) * 1000 / sysconf(_SC_CLK_TCK);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		errx(2, "usage: watch-ram MS PID...");
	int fds[argc];
	for (int i = 2; i < argc; i++)
		if ((fds[i] = open_ram(argv[i])) < 0)
			errx(1, "no guest RAM in process %s", argv[i]);
	long ms = atol(argv[1]);
	struct timespec pause = { ms / 1000, ms % 1000 * 1000000 };
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int num_alive = 1; num_alive; nanosleep(&pause, NULL)) {
		num_alive = 0;
		for (int i = 2; i < argc; i++) {
			struct stat stat;
			struct timeval now;
			long cpu = cpu_ms(argv[i]);
			if (cpu < 0 || fstat(fds[i], &stat))
				continue;
			num_alive++;
			gettimeofday(&now, NULL);
			printf("%ld %s %ld %ld\n", now.tv_sec * 1000000 + now.tv_usec, argv[i],
			       (long)stat.st_blocks / 2, cpu);
		}
	}
	return 0;
}

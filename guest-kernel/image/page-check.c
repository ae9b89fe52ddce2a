// SPDX-License-Identifier: GPL-2.0
// Memory and files that are used in every way, and compared with what they have to be all the time.
//
//	page-check MODE DIRECTORY SECONDS [SEED]
//
// files   a file is written, cut, punched, mapped and read, past the cache and from behind it
// writers several threads write to the same clean pages of a file, without a pause, and read them
// reuse   pages of a cache become anonymous ones, page tables and buffers of a disk, and others again
// locked  pages of a file are locked in memory, and read
//
// What a mode expects it keeps in memory that may be taken as well: a difference is a failure, whichever
// of the two is wrong. The last line is "MODE: ok, N rounds", or says what differs.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WRITERS = 3 };

static uint64_t random_state;
static const char *mode, *directory;
static time_t end;

static void fail(const char *format, ...)
{
	va_list arguments;

	printf("%s: DIFFERS: ", mode);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

static void die(const char *what)
{
	printf("%s: cannot %s: %s\n", mode, what, strerror(errno));
	fflush(stdout);
	_exit(2);
}

static uint64_t mix(uint64_t value)
{
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
	value = (value ^ value >> 27) * 0x94d049bb133111eb;
	return value ^ value >> 31;
}

static uint64_t below(uint64_t limit)
{
	return mix(random_state += 0x9e3779b97f4a7c15) % limit;
}

static int is_over(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec >= end;
}

static void fill(void *memory, size_t len, uint64_t seed)
{
	uint64_t *words = memory;
	size_t i;

	for (i = 0; i < len / sizeof(*words); i++)
		words[i] = mix(seed + i);
}

static void check(const void *memory, const void *expected, size_t len, const char *what, size_t at)
{
	const uint8_t *is = memory, *should = expected;
	size_t i;

	if (!memcmp(memory, expected, len))
		return;
	for (i = 0; is[i] == should[i]; i++)
		;
	fail("%s: byte %zu is %#x, not %#x", what, at + i, is[i], should[i]);
}

static void check_filled(const void *memory, size_t len, uint64_t seed, const char *what)
{
	static uint64_t page[PAGE / sizeof(uint64_t)];
	size_t at;

	for (at = 0; at < len; at += PAGE) {
		fill(page, PAGE, seed + at / sizeof(*page));
		check((const char *)memory + at, page, PAGE, what, at);
	}
}

static void *map(size_t len, int protection, int flags, int fd, off_t at)
{
	void *memory = mmap(NULL, len, protection, flags, fd, at);

	if (memory == MAP_FAILED)
		die("map");
	return memory;
}

static void *map_anonymous(size_t len)
{
	return map(len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int open_file(const char *name, int flags)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, flags | O_RDWR | O_CREAT, 0600);
	if (fd < 0)
		die(path);
	return fd;
}

static void read_all(int fd, void *memory, size_t len, off_t at)
{
	if (pread(fd, memory, len, at) != (ssize_t)len)
		die("read");
}

static void write_all(int fd, const void *memory, size_t len, off_t at)
{
	if (pwrite(fd, memory, len, at) != (ssize_t)len)
		die("write");
}

/* --- files ------------------------------------------------------------------------- */

enum { FILE_PAGES = 512, FILE_BYTES = FILE_PAGES * PAGE, MAX_CHUNK = 16 * PAGE };

static uint8_t *expected; /* of the whole file */

static void write_some(int fd)
{
	size_t at = below(FILE_BYTES - MAX_CHUNK) / 8 * 8, len = (8 + below(MAX_CHUNK - 8)) / 8 * 8;

	fill(expected + at, len, below(UINT64_MAX));
	write_all(fd, expected + at, len, at);
}

static void cut(int fd)
{
	size_t len = below(2) ? below(FILE_BYTES) : below(FILE_PAGES) * PAGE;

	/* It has to be zero where it is long again. */
	if (ftruncate(fd, len) || ftruncate(fd, FILE_BYTES))
		die("truncate");
	memset(expected + len, 0, FILE_BYTES - len);
}

static void punch(int fd)
{
	size_t at = below(FILE_BYTES - MAX_CHUNK), len = 1 + below(MAX_CHUNK);

	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len))
		die("punch");
	memset(expected + at, 0, len);
}

static void map_shared(int fd)
{
	size_t first = below(FILE_PAGES - 16), len = (1 + below(16)) * PAGE, at = first * PAGE;
	uint8_t *memory = map(len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, at);
	int is_locked = !below(3) && !mlock(memory, len);

	check(memory, expected + at, len, "shared mapping", at);
	fill(memory, len, below(UINT64_MAX));
	memcpy(expected + at, memory, len);
	if (below(2) && msync(memory, len, MS_SYNC))
		die("sync a mapping");
	if (is_locked)
		usleep(below(20000));
	check(memory, expected + at, len, "shared mapping after writing", at);
	munmap(memory, len);
}

static void map_private(int fd)
{
	size_t first = below(FILE_PAGES - 16), len = 16 * PAGE, at = first * PAGE;
	uint8_t *memory = map(len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, at);

	check(memory, expected + at, len, "private mapping", at);
	if (below(3) == 0)
		mlock(memory, len);
	/* Every other page is a copy from now on, and the rest is the file's. */
	for (size_t page = 0; page < 16; page += 2)
		fill(memory + page * PAGE, PAGE, at + page);
	usleep(below(20000));
	for (size_t page = 0; page < 16; page += 2) {
		check_filled(memory + page * PAGE, PAGE, at + page, "private copy");
		check(memory + (page + 1) * PAGE, expected + at + (page + 1) * PAGE, PAGE,
		      "private mapping beside copies", at + (page + 1) * PAGE);
	}
	munmap(memory, len);
}

static void go_past_the_cache(int direct, void *buffer)
{
	size_t at = below(FILE_PAGES - 16) * PAGE, len = (1 + below(16)) * PAGE;

	read_all(direct, buffer, len, at);
	check(buffer, expected + at, len, "direct read", at);
	if (below(2))
		return;
	fill(buffer, len, below(UINT64_MAX));
	memcpy(expected + at, buffer, len);
	write_all(direct, buffer, len, at);
	/* The same buffer: it is not to be what was written last. */
	memset(buffer, 0xee, len);
	read_all(direct, buffer, len, at);
	check(buffer, expected + at, len, "direct read after direct write", at);
}

static void read_some(int fd, void *buffer)
{
	size_t at = below(FILE_BYTES - MAX_CHUNK), len = 1 + below(MAX_CHUNK);

	read_all(fd, buffer, len, at);
	check(buffer, expected + at, len, "read", at);
}

static uint64_t check_files(void)
{
	int fd = open_file("changes", O_TRUNC), direct = open_file("changes", O_DIRECT);
	void *buffer = map_anonymous(MAX_CHUNK);
	uint64_t num_rounds = 0;

	expected = map_anonymous(FILE_BYTES);
	cut(fd);
	while (!is_over()) {
		switch (below(10)) {
		case 0:
			cut(fd);
			break;
		case 1:
			punch(fd);
			break;
		case 2:
			map_shared(fd);
			break;
		case 3:
			map_private(fd);
			break;
		case 4:
			go_past_the_cache(direct, buffer);
			break;
		case 5:
			if (fsync(fd))
				die("sync");
			break;
		case 6:
			posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
			break;
		case 7:
			write_some(fd);
			break;
		default:
			read_some(fd, buffer);
		}
		num_rounds++;
	}
	for (int is_from_disk = 0; is_from_disk < 2; is_from_disk++) {
		for (size_t at = 0; at < FILE_BYTES; at += MAX_CHUNK) {
			read_all(is_from_disk ? direct : fd, buffer, MAX_CHUNK, at);
			check(buffer, expected + at, MAX_CHUNK, "file in the end", at);
		}
	}
	return num_rounds;
}

/* --- writers ----------------------------------------------------------------------- */

enum { WRITTEN_PAGES = 64 };

/* A word of each page for each writer: nobody else writes to it. */
static _Atomic uint64_t (*written)[PAGE / sizeof(uint64_t)];
static atomic_int is_done;
static uint64_t num_written[WRITERS];

static void *write_always(void *argument)
{
	size_t writer = (uintptr_t)argument, page, word;
	uint64_t number;

	for (number = 0; !atomic_load(&is_done); number++) {
		for (page = 0; page < WRITTEN_PAGES; page++) {
			word = (page * 8 + writer * 128) % (PAGE / sizeof(uint64_t));
			uint64_t is = atomic_load(&written[page][word]);

			if (is != number)
				fail("page %zu, writer %zu: %ju, not %ju", page, writer,
				     (uintmax_t)is, (uintmax_t)number);
			atomic_store(&written[page][word], number + 1);
		}
	}
	num_written[writer] = number;
	return NULL;
}

static uint64_t check_writers(void)
{
	const size_t len = WRITTEN_PAGES * PAGE;
	int fd = open_file("written", O_TRUNC);
	void *buffer = map_anonymous(len);
	uint64_t num_rounds = 0;
	pthread_t threads[WRITERS];
	size_t i;

	/* Bytes that are no writer's, so that no page is zero. */
	fill(buffer, len, 1);
	for (size_t page = 0; page < WRITTEN_PAGES; page++)
		for (i = 0; i < WRITERS; i++)
			((uint64_t *)buffer)[page * 512 + (page * 8 + i * 128) % 512] = 0;
	write_all(fd, buffer, len, 0);
	written = map(len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (i = 0; i < WRITERS; i++)
		if (pthread_create(&threads[i], NULL, write_always, (void *)i))
			die("make a thread");
	/* Each sync makes the pages the same as the disk, for a moment. */
	for (; !is_over(); num_rounds++) {
		if (fsync(fd))
			die("sync");
		usleep(below(30000));
	}
	atomic_store(&is_done, 1);
	for (i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	if (fsync(fd))
		die("sync");
	read_all(open_file("written", O_DIRECT), buffer, len, 0);
	check(buffer, (void *)written, len, "disk in the end", 0);
	for (i = 0; i < WRITERS; i++)
		if (!num_written[i])
			die("write");
	return num_rounds;
}

/* --- reuse ------------------------------------------------------------------------- */

enum { REUSED_BYTES = 4 << 20, TABLES = 256 };
static const size_t TABLE_SPAN = 2 << 20; /* of memory that one page table maps */

/* Anonymous pages, in this process and in a child that has copies of some. */
static void use_anonymous(uint64_t seed)
{
	uint8_t *memory = map_anonymous(REUSED_BYTES);
	pid_t child;
	int status;

	check(memory, expected, REUSED_BYTES, "new anonymous memory", 0);
	fill(memory, REUSED_BYTES, seed);
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		fill(memory, REUSED_BYTES / 2, ~seed);
		usleep(below(50000));
		check_filled(memory, REUSED_BYTES / 2, ~seed, "copy of a child");
		check_filled(memory + REUSED_BYTES / 2, REUSED_BYTES / 2,
			     seed + REUSED_BYTES / 16, "what a child has in common");
		_exit(0);
	}
	check_filled(memory, REUSED_BYTES, seed, "anonymous memory beside a child");
	if (waitpid(child, &status, 0) != child || status)
		fail("a child ended with status %#x", status);
	/* Given back, and fresh on the next touch. */
	if (madvise(memory, REUSED_BYTES / 4, MADV_DONTNEED))
		die("give memory back");
	check(memory, expected, REUSED_BYTES / 4, "memory that was given back", 0);
	check_filled(memory + REUSED_BYTES / 4, REUSED_BYTES * 3 / 4, seed + REUSED_BYTES / 32,
		     "anonymous memory");
	munmap(memory, REUSED_BYTES);
}

/* A page table for each page. */
static void use_page_tables(uint64_t seed)
{
	char *memory = mmap(NULL, TABLES * TABLE_SPAN, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t i;

	if (memory == MAP_FAILED)
		die("map much");
	madvise(memory, TABLES * TABLE_SPAN, MADV_NOHUGEPAGE);
	for (i = 0; i < TABLES; i++)
		*(uint64_t *)(memory + i * TABLE_SPAN + i % 512 * PAGE) = mix(seed + i);
	usleep(below(50000));
	for (i = 0; i < TABLES; i++) {
		uint64_t is = *(uint64_t *)(memory + i * TABLE_SPAN + i % 512 * PAGE);

		if (is != mix(seed + i))
			fail("behind page table %zu: %#jx", i, (uintmax_t)is);
	}
	munmap(memory, TABLES * TABLE_SPAN);
}

/* Fresh pages are what a disk reads into and writes from. */
static void use_disk_buffers(int direct, uint64_t seed)
{
	void *memory = map_anonymous(REUSED_BYTES);

	fill(memory, REUSED_BYTES, seed);
	write_all(direct, memory, REUSED_BYTES, 0);
	munmap(memory, REUSED_BYTES);
	memory = map_anonymous(REUSED_BYTES);
	read_all(direct, memory, REUSED_BYTES, 0);
	check_filled(memory, REUSED_BYTES, seed, "buffer of a disk");
	munmap(memory, REUSED_BYTES);
}

/* Pages of the cache, clean, which are free afterwards. */
static void use_cache(int fd, uint64_t seed)
{
	void *memory;

	if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		die("empty a cache");
	memory = map(REUSED_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	check_filled(memory, REUSED_BYTES, seed, "cache");
	usleep(below(50000));
	check_filled(memory, REUSED_BYTES, seed, "cache again");
	munmap(memory, REUSED_BYTES);
	if (posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		die("empty a cache");
}

static uint64_t check_reuse(void)
{
	int fd = open_file("cached", O_TRUNC), direct = open_file("cached", O_DIRECT);
	uint64_t num_rounds = 0, seed;

	expected = map_anonymous(REUSED_BYTES); /* zeros */
	for (; !is_over(); num_rounds++) {
		seed = below(UINT64_MAX);
		use_disk_buffers(direct, seed);
		use_cache(fd, seed);
		use_anonymous(seed + 1);
		use_cache(fd, seed);
		use_page_tables(seed + 2);
	}
	return num_rounds;
}

static uint64_t check_locked(void)
{
	const size_t len = 8 << 20;
	int fd = open_file("locked", O_TRUNC);
	uint64_t num_rounds = 0;
	void *memory;

	if (ftruncate(fd, len))
		die("extend a file");
	memory = map(len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fill(memory, len, 1);
	if (fsync(fd))
		die("write a file");
	if (mlock(memory, len))
		die("lock pages");
	for (; !is_over(); num_rounds++) {
		check_filled(memory, len, 1, "locked");
		usleep(100000);
	}
	return num_rounds;
}

/* ----------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		uint64_t (*run)(void);
	} modes[] = {
		{ "files", check_files },
		{ "writers", check_writers },
		{ "reuse", check_reuse },
		{ "locked", check_locked },
	};
	struct timespec now;

	if (argc < 4 || argc > 5) {
		fprintf(stderr, "usage: page-check files|writers|reuse|locked DIRECTORY SECONDS [SEED]\n");
		return 2;
	}
	mode = argv[1];
	directory = argv[2];
	clock_gettime(CLOCK_MONOTONIC, &now);
	end = now.tv_sec + strtol(argv[3], NULL, 10);
	random_state = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (strcmp(modes[i].name, mode))
			continue;
		uint64_t num_rounds = modes[i].run();

		printf("%s: ok, %ju rounds\n", mode, (uintmax_t)num_rounds);
		return 0;
	}
	fprintf(stderr, "page-check: unknown mode %s\n", mode);
	return 2;
}

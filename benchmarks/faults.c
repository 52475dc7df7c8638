/* Makes the k-th file operation under a folder fail. Loaded with LD_PRELOAD, armed by faults.py in a forked child.

   Counted: open (to read, to write), read, write, fsync, rename, mkdir, whoever calls them: Python, HDF5, Arrow,
   safetensors. A full disk (ENOSPC) stays full for what writes; EIO and EACCES come once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

enum kind { READING, WRITING, READ, WRITE, FSYNC, RENAME, MKDIR, KINDS };
static const char *NAMES[KINDS] = {"open to read", "open to write", "read", "write", "fsync", "rename", "mkdir"};
static const int CODES[KINDS][3] = {{EACCES, EIO, EACCES}, {ENOSPC, EIO, EACCES}, {EIO, EIO, EIO}, {ENOSPC, EIO, ENOSPC},
                                    {EIO, ENOSPC, EIO}, {ENOSPC, EIO, EACCES}, {ENOSPC, EIO, EACCES}};
#define MOST_FILES 4096
static char under[PATH_MAX], told[PATH_MAX + 64], watched[MOST_FILES], paths[MOST_FILES][256];
static long count, failing;
static int turn, full;

void faults_arm(const char *folder, long k, int shift) {
    strncpy(under, folder, sizeof under - 1);
    count = 0, failing = k, turn = shift, full = 0, told[0] = 0;
}
long faults_count(void) { return count; }
const char *faults_told(void) { return told; }

static int inside(const char *path) {
    return under[0] && path && (path[0] != '/' || strncmp(path, under, strlen(under)) == 0);
}

/* Whether this operation fails; errno says why. */
static int fails(enum kind kind, const char *path) {
    if (full && kind != READING && kind != READ) return errno = ENOSPC, 1;
    if (++count != failing) return 0;
    int code = CODES[kind][(failing + turn) % 3];
    full = code == ENOSPC;
    snprintf(told, sizeof told, "%s\t%s\t%s", NAMES[kind], strerrorname_np(code), path);
    return errno = code, 1;
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < MOST_FILES) watched[fd] = 1, strncpy(paths[fd], path, 255);
    return fd;
}
static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
        if (!inside(path)) return real(path, flags, mode); \
        if (fails(writes(flags) ? WRITING : READING, path)) return -1; \
        return opened(real(path, flags, mode), path); \
    }
OPEN(open) OPEN(open64)
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
        if (at != AT_FDCWD || !inside(path)) return real(at, path, flags, mode); \
        if (fails(writes(flags) ? WRITING : READING, path)) return -1; \
        return opened(real(at, path, flags, mode), path); \
    }
OPENAT(openat) OPENAT(openat64)
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, #name, const char *, const char *); \
        if (inside(path) && fails(strpbrk(mode, "wa+") ? WRITING : READING, path)) return NULL; \
        return real(path, mode); \
    }
FOPEN(fopen) FOPEN(fopen64)

int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < MOST_FILES) watched[fd] = 0;
    return real(fd);
}
#define ON_FILE(type, name, kind, parameters, ...) \
    type name parameters { \
        REAL(type, #name, __typeof__(name) *) ; \
        if (fd >= 0 && fd < MOST_FILES && watched[fd] && fails(kind, paths[fd])) return -1; \
        return ((__typeof__(name) *)(void *)real)(__VA_ARGS__); \
    }
ON_FILE(ssize_t, read, READ, (int fd, void *to, size_t n), fd, to, n)
ON_FILE(ssize_t, pread, READ, (int fd, void *to, size_t n, off_t at), fd, to, n, at)
ON_FILE(ssize_t, pread64, READ, (int fd, void *to, size_t n, off64_t at), fd, to, n, at)
ON_FILE(ssize_t, write, WRITE, (int fd, const void *from, size_t n), fd, from, n)
ON_FILE(ssize_t, writev, WRITE, (int fd, const struct iovec *from, int n), fd, from, n)
ON_FILE(ssize_t, pwrite, WRITE, (int fd, const void *from, size_t n, off_t at), fd, from, n, at)
ON_FILE(ssize_t, pwrite64, WRITE, (int fd, const void *from, size_t n, off64_t at), fd, from, n, at)
ON_FILE(int, ftruncate64, WRITE, (int fd, off64_t n), fd, n)
ON_FILE(int, fsync, FSYNC, (int fd), fd)
ON_FILE(int, fdatasync, FSYNC, (int fd), fd)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return inside(to) && fails(RENAME, to) ? -1 : real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return inside(to) && fails(RENAME, to) ? -1 : real(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return inside(path) && fails(MKDIR, path) ? -1 : real(path, mode);
}

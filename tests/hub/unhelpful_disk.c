/* LD_PRELOAD: a disk that answers flock, symlink, link, fsync, rename or any writing with the error
   number in DISK_FLOCK, DISK_SYMLINK, DISK_FSYNC, DISK_RENAME, DISK_WRITE; the last one only for
   paths below DISK_PATH, without which it is everywhere. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(const char *what, const char *path) {
    const char *number = getenv(what), *below = getenv("DISK_PATH");
    if (number == NULL || (path && below && strncmp(path, below, strlen(below)) != 0)) return 0;
    errno = atoi(number);
    return 1;
}
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int flock(int file, int how) { return refused("DISK_FLOCK", NULL) ? -1 : NEXT(flock)(file, how); }
int fsync(int file) { return refused("DISK_FSYNC", NULL) ? -1 : NEXT(fsync)(file); }
int fdatasync(int file) { return refused("DISK_FSYNC", NULL) ? -1 : NEXT(fdatasync)(file); }
int symlink(const char *to, const char *path) {
    if (refused("DISK_SYMLINK", NULL) || refused("DISK_WRITE", path)) return -1;
    return NEXT(symlink)(to, path);
}
int rename(const char *from, const char *to) {
    if (refused("DISK_RENAME", to) || refused("DISK_WRITE", to)) return -1;
    return NEXT(rename)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    struct stat status;
    if (stat(path, &status) != 0 && refused("DISK_WRITE", path)) return -1;
    return NEXT(mkdir)(path, mode);
}
int unlink(const char *path) { return refused("DISK_WRITE", path) ? -1 : NEXT(unlink)(path); }
static int opened(const char *name, const char *path, int flags, mode_t mode) {
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && refused("DISK_WRITE", path)) return -1;
    return ((int (*)(const char *, int, mode_t))dlsym(RTLD_NEXT, name))(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return opened("open", path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return opened("open64", path, flags, mode);
}

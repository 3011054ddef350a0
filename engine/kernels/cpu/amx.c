// Whether this process may use AMX, and the end of its use.

#define _GNU_SOURCE
#include "kernels.h"
#include "amx.h"

#if defined(HAS_AMX) && !defined(MYNA_EMULATE_AMX)
#include <sys/syscall.h>
#include <unistd.h>

static int amx_answer = -1;  // threads may race; they write the same value

// Linux saves the tile registers only for processes that request it.
int amx_permitted(void) {
    int answer = amx_answer;
    if (answer < 0) {
        const int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
        answer = amx_answer = syscall(SYS_arch_prctl, ask, tile_data) == 0;
    }
    return answer;
}

void amx_end(void) {
    if (amx_permitted()) _tile_release();
}

#else
#ifdef HAS_AMX
static int amx_answer = 1;
#else
static int amx_answer = 0;
#endif

int amx_permitted(void) { return amx_answer; }
void amx_end(void) {}
#endif

static int64_t tile_thread_limit = 0;

int64_t tile_threads(int64_t threads) {
    return tile_thread_limit && tile_thread_limit < threads ? tile_thread_limit : threads;
}

// Limits the threads that multiply tiles in linear layers; 0: all threads. Two threads of one core share its tile unit.
void myna_limit_tile_threads(int64_t limit) { tile_thread_limit = limit; }

// Returns whether linear layers and attention use AMX.
int32_t myna_has_amx(void) { return amx_permitted(); }

// Makes them not use AMX.
void myna_forbid_amx(void) { amx_answer = 0; }

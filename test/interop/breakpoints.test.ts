/**
 * Hardware breakpoints on the host's own CPU, set by perf_event_open(2) for the process itself: each hit is a SIGTRAP, whose RIP (and RCX, where it is a
 * small count) our core must show too. Skips, and says why, without gcc, without perf events or on another CPU.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { CODE, GuestBench, RIP, RSP, STACK } from '../hardware/cpu/guest-bench.ts';
import { hostUnfit, hostVendor } from '../oracle/host-cpu.ts';

const SOURCE = `
#define _GNU_SOURCE
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
static unsigned char *page;
static struct { long rip, rcx; } seen[4096];
static int count;
static void trap(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  if (count < 4096) {
    seen[count].rip = r[REG_RIP] - (long)page;
    seen[count++].rcx = r[REG_RCX];
  }
}
static int watch(int type, unsigned long address, int length) {
  struct perf_event_attr attr = {.type = PERF_TYPE_BREAKPOINT, .size = sizeof attr};
  attr.sample_period = 1;
  attr.bp_type = type == 0 ? HW_BREAKPOINT_X : type == 1 ? HW_BREAKPOINT_W : HW_BREAKPOINT_RW;
  attr.bp_addr = address;
  attr.bp_len = type == 0 ? sizeof(long) : length;
  attr.exclude_kernel = attr.exclude_hv = attr.sigtrap = attr.remove_on_exec = 1;
  return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}
int main(int argc, char **argv) {
  struct sigaction action = {0};
  static char stack[65536];
  stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
  page = mmap(0, 16384, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (page == MAP_FAILED || sigaltstack(&other, 0) != 0) return 1;
  action.sa_sigaction = trap;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGTRAP, &action, 0);
  for (int i = 1; i + 3 < argc; i += 4) {
    unsigned byte, type, offset, length;
    sscanf(argv[i], "%u", &type);
    sscanf(argv[i + 1], "%x", &offset);
    sscanf(argv[i + 2], "%u", &length);
    memset(page, 0, 16384);
    for (int at = 0; sscanf(argv[i + 3] + 2 * at, "%2x", &byte) == 1; at++) page[at] = byte;
    count = 0;
    int event = watch(type, (unsigned long)page + offset, length);
    if (event < 0) return 2;
    __asm__ volatile("xor %%ecx, %%ecx; xor %%eax, %%eax; cld; call *%0" ::"b"(page)
                     : "rax", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "xmm0", "memory", "cc");
    close(event);
    for (int k = 0; k < count; k++) {
      printf("%s%lx", k ? " " : "", seen[k].rip);
      if (seen[k].rcx > 0 && seen[k].rcx < 16) printf(":%ld", seen[k].rcx);
    }
    printf("\\n");
  }
  return 0;
}
`;

const EXECUTE = 0;
const WRITE = 1;
const ACCESS = 3;
/** Offset of the data page; RDI and RSI are set to it, RBX holds the code page. */
const DATA = 0x1000;
const RDI = '488dbb00100000';
const RSI = '488db300100000';
const ECX = (count: number): string => `b9${count.toString(16).padStart(2, '0')}000000`;

type Row = readonly [name: string, kind: number, offset: number, length: 1 | 2 | 4 | 8, code: string];
const ROWS: readonly Row[] = [
  ['a store, where writes are watched', WRITE, DATA, 8, `${RDI}48890790`],
  ['a load, where writes are watched', WRITE, DATA, 8, `${RDI}488b0790`],
  ['a load, where accesses are watched', ACCESS, DATA, 8, `${RDI}488b0790`],
  ['a store, where accesses are watched', ACCESS, DATA, 8, `${RDI}48890790`],
  ['ADD to memory, where writes are watched', WRITE, DATA, 4, `${RDI}010790`],
  ['CMP with memory, where writes are watched', WRITE, DATA, 4, `${RDI}390790`],
  ['a byte inside 4 watched ones', WRITE, DATA + 4, 4, `${RDI}c647070190`],
  ['a byte just below', WRITE, DATA + 4, 4, `${RDI}c647030190`],
  ['a byte just above', WRITE, DATA + 4, 4, `${RDI}c647080190`],
  ['the last byte of a store', WRITE, DATA + 7, 1, `${RDI}48890790`],
  ['a store that begins below', WRITE, DATA, 2, `${RDI}488947fa4889470290`],
  ['a store across a page', WRITE, DATA, 1, `${RDI}488947fd90`],
  ['the first half of a store across a page', WRITE, DATA - 2, 1, `${RDI}488947fd90`],
  ['16 bytes of SSE', WRITE, DATA + 12, 4, `${RDI}0f110790`],
  ['a CMPXCHG that does not match', WRITE, DATA, 4, `${RDI}b8050000000fb10f90`],
  ['an XCHG', WRITE, DATA, 4, `${RDI}870790`],
  ['BT, which reads alone', WRITE, DATA, 4, `${RDI}0fba270190`],
  ['BTS', WRITE, DATA, 4, `${RDI}0fba2f0190`],
  ['two stores to it', WRITE, DATA, 4, `${RDI}890790890790`],
  ['a PUSH to it', WRITE, DATA + 8, 8, `${RDI}4889e2488d67105090 4889d490`.replaceAll(' ', '')],
  ['a POP from it', ACCESS, DATA + 8, 8, `${RDI}4889e2488d67085890 4889d490`.replaceAll(' ', '')],
  [
    'a CALL whose return address goes there',
    WRITE,
    DATA + 8,
    8,
    `${RDI}4889e2488d6710e80000000058904889d490`,
  ],
  ['MOVSB', WRITE, DATA + 1, 1, `${RDI}${RSI}ffc7a490`.replace('ffc7', '48ffc7')],
  ['REP STOSB over it', WRITE, DATA + 3, 1, `${RDI}${ECX(8)}f3aa90`],
  ['REP STOSB over four', WRITE, DATA + 4, 4, `${RDI}${ECX(12)}f3aa90`],
  ['REP MOVSQ from it', ACCESS, DATA + 8, 8, `${RDI}${RSI}4881c700020000${ECX(4)}f348a590`],
  ['REPE CMPSB over it', ACCESS, DATA + 1, 1, `${RDI}${RSI}4881c700020000${ECX(4)}f3a690`],
  ['LEA, which accesses nothing', ACCESS, DATA, 8, `${RDI}488d0790`],
  ['PREFETCH, which is no access', ACCESS, DATA, 8, `${RDI}0f180f90`],
  ['an instruction', EXECUTE, 1, 1, '909090'],
  ['an instruction in a loop', EXECUTE, 5, 1, `${ECX(3)}90e2fd`],
  ['the middle of an instruction', EXECUTE, 3, 1, '48c7c000000000'],
  ['a target of a jump', EXECUTE, 3, 1, 'eb01909090'],
  ['a repeated instruction', EXECUTE, 12, 1, `${RDI}${ECX(3)}f3aa90`],
  ['a system call', EXECUTE, 5, 1, 'b8270000000f0590'.replace('0f05', '0fa2').replace('b827', 'b800')],
];

const folder = mkdtempSync(join(tmpdir(), 'softcvm-breakpoint-'));

/** The host's answers, or why there are none. */
function askHost(): string[] | string {
  const unfit = hostUnfit();
  if (unfit !== undefined) return unfit;
  if (hostVendor() !== 'AMD') return 'the host’s CPU is not AMD’s';
  if (spawnSync('gcc', ['--version']).status !== 0) return 'gcc is not installed';
  try {
    const program = join(folder, 'breakpoints');
    writeFileSync(`${program}.c`, SOURCE);
    execFileSync('gcc', ['-O1', '-mno-red-zone', '-o', program, `${program}.c`]);
    const rows = ROWS.flatMap(([, kind, offset, length, code]) => [
      String(kind),
      offset.toString(16),
      String(length),
      code,
    ]);
    // RBX is a callee's to keep: the programs leave it alone.
    const { status, stdout } = spawnSync(
      program,
      rows.map((word, i) => (i % 4 === 3 ? `${word}c3` : word)),
      { encoding: 'utf8' },
    );
    if (status === 2) return 'perf_event_open gives no breakpoints';
    if (status !== 0) throw new Error(`the program ended with ${status}`);
    return stdout.split('\n');
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const host = askHost();
if (typeof host === 'string') console.log(`breakpoints not compared: ${host}`);

/** Traps as `offset` or `offset:count`, as the host's program writes them. */
function ours([, kind, offset, length, code]: Row): string {
  const bench = new GuestBench();
  try {
    bench.interceptException(1);
    bench.memory.write(bench.spa(CODE), new Uint8Array(Buffer.from(`${code}c3`, 'hex')));
    const halt = CODE + 0x800;
    bench.memory.write(bench.spa(halt), Uint8Array.of(0xf4));
    bench.write(STACK - 8, BigInt(halt));
    bench.setLong(RSP, BigInt(STACK - 8));
    bench.setLong(RIP, BigInt(CODE));
    bench.core.gpr[3] = BigInt(CODE);
    bench.core.debugAddresses[0] = BigInt(CODE + offset);
    const field = kind | ({ 1: 0, 2: 1, 8: 2, 4: 3 }[length] << 2);
    bench.setLong(0x560, BigInt(0x401 | (field << 16)));
    const seen: string[] = [];
    let exit = bench.run();
    for (; exit === 0x41 && seen.length < 4096; exit = bench.run()) {
      const count = bench.core.gpr[1]!;
      const at = (bench.long(RIP) - BigInt(CODE)).toString(16);
      seen.push(count > 0n && count < 16n ? `${at}:${count}` : at);
      // Linux's handler goes on with RF where an instruction was watched.
      if (kind === EXECUTE) bench.setLong(0x570, bench.long(0x570) | 0x10000n);
    }
    expect(exit).toBe(0x78);
    return seen.join(' ');
  } finally {
    bench.close();
  }
}

describe.skipIf(typeof host === 'string')('breakpoints hit where the host’s CPU has them', () => {
  it.each(ROWS.map((row, n) => [row[0], row, n] as const))('%s', (_name, row, n) => {
    expect(ours(row)).toBe(host[n]);
  });
});

/**
 * Single steps on the host's own CPU: a program that sets RFLAGS.TF runs code and notes in its SIGTRAP handler where each trap came, and
 * RCX where it is a small count; our core must trap at the same places. Skips, and says why, without gcc or on another CPU.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { CODE, GuestBench, RFLAGS, RIP, RSP, STACK } from '../hardware/cpu/guest-bench.ts';
import { hostUnfit, hostVendor } from '../oracle/host-cpu.ts';

const gcc = spawnSync('gcc', ['--version']);
const missing =
  hostUnfit() ??
  (gcc.status !== 0
    ? 'gcc is not installed'
    : hostVendor() !== 'AMD'
      ? 'the host’s CPU is not AMD’s'
      : undefined);
if (missing !== undefined) console.log(`single steps not compared: ${missing}`);

const SOURCE = `
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
static unsigned char *page;
static struct { long rip, rcx, flags; } seen[4096];
static int count;
static void trap(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  if (count < 4096) {
    seen[count].rip = r[REG_RIP] - (long)page;
    seen[count].flags = r[REG_EFL];
    seen[count++].rcx = r[REG_RCX];
  }
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
  for (int i = 1; i < argc; i++) {
    unsigned byte;
    memset(page, 0, 16384);
    for (int at = 0; sscanf(argv[i] + 2 * at, "%2x", &byte) == 1; at++) page[at] = byte;
    count = 0;
    __asm__ volatile("xor %%ecx, %%ecx; call *%0" ::"r"(page)
                     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "memory", "cc");
    for (int k = 0; k < count; k++) {
      printf("%s%lx", k ? " " : "", seen[k].rip);
      if (seen[k].flags >> 16 & 1) printf("r");
      if (seen[k].rcx > 0 && seen[k].rcx < 8) printf(":%ld", seen[k].rcx);
    }
    printf("\\n");
  }
  return 0;
}
`;

/** pushfq; or qword [rsp], 0x100; popfq — and the end of it; ret. */
const BEGIN = '9c48810c24000100009d';
const END = '9c48812424fffeffff9d';
const RET = 'c3';
const RDI = '488d3d00110000';
const RSI = '488d3500100000';
const ECX3 = 'b903000000';
/** mov rax, rsp; push ss; push rax; pushfq */
const IRET_FRAME = '4889e08cd151509c';
/** push cs; push of the address behind; iretq */
const IRET = '8cc951488d0d030000005148cf';

const SNIPPETS: Readonly<Record<string, string>> = {
  nothing: '',
  NOP: '9090',
  'a jump': 'eb0090',
  'a call and its return address': 'e80000000058',
  LOOP: `${ECX3}e2fe`,
  'PUSHF and POP': '9c58',
  'REP MOVSB': `${RSI}${RDI}${ECX3}f3a490`,
  'REP MOVSB backwards': `${RSI}${RDI}${ECX3}fdf3a4fc`,
  'REP MOVSD with 32-bit addresses': `${RSI}${RDI}${ECX3}67f3a590`,
  'REP STOSQ': `${RDI}${ECX3}f348ab`,
  'REP LODSB': `${RSI}${ECX3}f3ac`,
  'REP STOSB, none': `${RDI}31c9f3aa90`,
  'REP STOSB, one': `${RDI}b901000000f3aa90`,
  'REPE CMPSB': `${RSI}${RDI}${ECX3}f3a690`,
  'REPNE CMPSB': `${RSI}${RDI}${ECX3}f2a690`,
  'REPNE SCASB that finds nothing': `${RDI}${ECX3}b001f2ae90`,
  'REPE SCASB': `${RDI}${ECX3}31c0f3ae90`,
  'MOV SS': '8cd08ed09090',
  'MOV SS and PUSHF': '8cd08ed09c58',
  'MOV SS twice': '8cd08ed08ed09090',
  'MOV SS three times': '8cd08ed08ed08ed09090',
  'MOV SS and a repeated instruction': `${RDI}${ECX3}8cd08ed0f3aa90`,
  'MOV SS and POPF that clears': '9c48812424fffeffff8cd08ed09d9090',
  'TF off and on': `${END}9090${BEGIN}9090`,
  IRET: `${IRET_FRAME}${IRET}9090`,
  'IRET that clears': `${IRET_FRAME}48812424fffeffff${IRET}9090${BEGIN}90`,
  CPUID: '5331c00fa25b90',
  RDTSC: '0f3190',
  'ENTER and LEAVE': 'c8100000c9',
};

/** Traps as `offset` or `offset:count`; `r` with RFLAGS.RF. */
function ours(code: string): string {
  const bench = new GuestBench();
  try {
    bench.interceptException(1);
    bench.memory.write(bench.spa(CODE), new Uint8Array(Buffer.from(code, 'hex')));
    const halt = CODE + 0x800;
    bench.memory.write(bench.spa(halt), Uint8Array.of(0xf4));
    bench.write(STACK - 8, BigInt(halt));
    bench.setLong(RSP, BigInt(STACK - 8));
    bench.setLong(RIP, BigInt(CODE));
    const seen: string[] = [];
    let exit = bench.run();
    for (; exit === 0x41 && seen.length < 4096; exit = bench.run()) {
      const count = bench.core.gpr[1]!;
      const resume = (bench.long(RFLAGS) & 0x10000n) !== 0n ? 'r' : '';
      const at = (bench.long(RIP) - BigInt(CODE)).toString(16) + resume;
      seen.push(count > 0n && count < 8n ? `${at}:${count}` : at);
    }
    expect(exit).toBe(0x78);
    return seen.join(' ');
  } finally {
    bench.close();
  }
}

describe.skipIf(missing !== undefined)('single steps come where the host’s CPU has them', () => {
  const folder = mkdtempSync(join(tmpdir(), 'softcvm-step-'));
  const want = new Map<string, string>();
  beforeAll(() => {
    writeFileSync(join(folder, 'step.c'), SOURCE);
    execFileSync('gcc', ['-O1', '-mno-red-zone', '-o', join(folder, 'step'), join(folder, 'step.c')]);
    const programs = Object.entries(SNIPPETS).map(
      ([name, code]) => [name, BEGIN + code + END + RET] as const,
    );
    const output = execFileSync(
      join(folder, 'step'),
      programs.map(([, code]) => code),
      { encoding: 'utf8' },
    );
    const lines = output.split('\n');
    for (const [n, [name]] of programs.entries()) want.set(name, lines[n]!);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it.each(Object.entries(SNIPPETS))('%s', (name, code) => {
    const traps = want.get(name)!;
    if (name !== 'nothing') expect(traps.split(' ').length).toBeGreaterThan(2);
    expect(ours(BEGIN + code + END + RET)).toBe(traps);
  });
});

/** The layouts of src/abi against linux/kvm.h as gcc sees it. Skips, and says why, without gcc or without the header. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { kvm_run, kvm_run_exits } from '../../src/abi/kvm-run-layout.ts';
import * as structs from '../../src/abi/kvm-structs.ts';

const gcc = spawnSync('gcc', ['--version'], { encoding: 'utf8' });
const header = spawnSync('gcc', ['-E', '-include', 'linux/kvm.h', '-x', 'c', '/dev/null'], {
  encoding: 'utf8',
});
const missing =
  gcc.status !== 0
    ? 'gcc is not installed'
    : header.status !== 0
      ? 'linux/kvm.h is not installed (linux-libc-dev)'
      : undefined;
if (missing !== undefined) console.log(`skipped: ${missing}`);

/** Whether the header knows all that our layouts have; an older one lacks members and whole structures. */
const complete = header.stdout?.includes('snp_req_certs') ?? false;

/**
 * Values of C expressions, by gcc: undefined for one that this header cannot answer. Each stands on a line of its own, so that
 * gcc's messages say which.
 */
function evaluate(expressions: readonly string[]): (number | undefined)[] {
  const folder = mkdtempSync(join(tmpdir(), 'softcvm-abi-'));
  const source = join(folder, 'abi.c');
  const program = join(folder, 'abi');
  const first = 5;
  const compile = (known: (index: number) => boolean) => {
    const lines = expressions.map((e, i) => (known(i) ? `printf("%d %zu\\n", ${i}, (size_t)(${e}));` : ';'));
    const head = ['#include <stddef.h>', '#include <stdio.h>', '#include <linux/kvm.h>', 'int main(void) {'];
    writeFileSync(source, [...head, ...lines, '}', ''].join('\n'));
    return spawnSync('gcc', ['-fmax-errors=0', '-o', program, source], { encoding: 'utf8' });
  };
  try {
    const refused = new Set<number>();
    for (const [, line] of compile(() => true).stderr.matchAll(/abi\.c:(\d+):\d+: error/g)) {
      refused.add(Number(line) - first);
    }
    const again = compile((i) => !refused.has(i));
    if (again.status !== 0) throw new Error(again.stderr);
    const values: (number | undefined)[] = expressions.map(() => undefined);
    for (const line of execFileSync(program, { encoding: 'utf8' }).trim().split('\n')) {
      const [index, value] = line.split(' ').map(Number);
      values[index!] = value;
    }
    return values;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Expects gcc's answers; where an older header has none, says so. */
function compare(want: readonly (readonly [string, number])[]): void {
  const got = evaluate(want.map(([expression]) => expression));
  const absent = want.filter((_, i) => got[i] === undefined).map(([expression]) => expression);
  const names = new Set(
    absent.map((e) =>
      e.replace(/^\w+\(struct (\w+)(?:, (\w+).*)?\)$/, '$1.$2').replace(/^(kvm_(?!run)\w+).*/, '$1'),
    ),
  );
  if (absent.length > 0) console.log(`left out, this linux/kvm.h lacks them: ${[...names].join(', ')}`);
  if (complete) expect(absent).toEqual([]);
  const answered = want.filter((_, i) => got[i] !== undefined);
  expect(answered.length).toBeGreaterThan(0);
  expect(
    answered.map(([expression]) => [expression, got[want.findIndex(([e]) => e === expression)]]),
  ).toEqual(answered);
}

describe.skipIf(missing !== undefined)('src/abi agrees with linux/kvm.h', () => {
  it('in size and offsets of every structure', () => {
    const want: [string, number][] = [];
    for (const [name, layout] of Object.entries(structs)) {
      want.push([`sizeof(struct ${name})`, layout.size]);
      for (const [member, offset] of Object.entries(layout.offsets)) {
        const spelled = name === 'kvm_irq_level' && member === 'source' ? 'irq' : member;
        want.push([`offsetof(struct ${name}, ${spelled})`, offset]);
      }
    }
    compare(want);
  });

  it('in struct kvm_run and its exits', () => {
    const want: [string, number][] = [['sizeof(struct kvm_run)', kvm_run.size]];
    for (const [member, offset] of Object.entries(kvm_run.offsets)) {
      want.push([`offsetof(struct kvm_run, ${member === 'exit' ? 'hw' : member})`, offset]);
    }
    for (const [exit, layout] of Object.entries(kvm_run_exits)) {
      if (!('offsets' in layout)) continue;
      for (const [member, offset] of Object.entries(layout.offsets)) {
        const path = exit === 'debug' ? 'debug.arch' : exit;
        want.push([`offsetof(struct kvm_run, ${path}.${member})`, 0x20 + offset]);
      }
    }
    compare(want);
  });
});

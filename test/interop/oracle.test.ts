/**
 * The host's own CPU judges ours: random snippets of every group of instructions, and registers, flags (but those the manual leaves
 * undefined) and memory must come out the same. SOFTCVM_SEED repeats a run, SOFTCVM_SNIPPETS sets the number per group.
 */
import { describe, expect, it } from 'vitest';
import { formsOf, ZEN3_ONLY } from '../oracle/forms.ts';
import { FLOAT_GROUPS, GROUPS } from '../oracle/groups.ts';
import { hostIsZen3, hostUnfit, hostVendor, runOnHost } from '../oracle/host-cpu.ts';
import { differences, type Snippet } from '../oracle/snippet.ts';
import { SnippetGenerator } from '../oracle/snippet-generator.ts';
import { snippetProgram } from '../oracle/snippet-program.ts';
import { UserMachine } from '../oracle/user-machine.ts';

const seed = Number(process.env['SOFTCVM_SEED'] ?? Math.floor(Math.random() * 1e9));
const count = Number(process.env['SOFTCVM_SNIPPETS'] ?? 4000);
const BATCH = 2000;
const REPORTED = 20;

const unfit = hostUnfit();
if (unfit) console.log(`oracle not asked: ${unfit}`);

const vendor = unfit === undefined ? hostVendor() : 'other';
const zen3 = unfit === undefined && hostIsZen3();
const forms = (mnemonics: readonly string[]) =>
  formsOf(mnemonics, vendor).filter(({ name }) => zen3 || !ZEN3_ONLY.test(name));

/** What differs, snippet by snippet. */
function judge(snippets: readonly Snippet[]): string[] {
  const program = snippetProgram(snippets);
  const want = runOnHost(program);
  const machine = new UserMachine(program);
  try {
    const got = machine.run();
    return snippets.flatMap((snippet, n) => {
      const found = differences(snippet, program.outcome(n, got), program.outcome(n, want));
      const bytes = Buffer.from(snippet.code).toString('hex');
      return found.length === 0
        ? []
        : [`${snippet.text} (${bytes})\n    ${found.slice(0, 6).join('\n    ')}`];
    });
  } finally {
    machine.close();
  }
}

function compare(name: string, generator: SnippetGenerator): void {
  console.log(`${name}: SOFTCVM_SEED=${seed}, ${count} snippets`);
  const wrong: string[] = [];
  for (let done = 0; done < count; done += BATCH) {
    const snippets = Array.from({ length: Math.min(BATCH, count - done) }, (_, n) => generator.next(n));
    wrong.push(...judge(snippets));
  }
  expect(wrong.slice(0, REPORTED).join('\n')).toBe('');
}

describe.skipIf(unfit !== undefined)('the host CPU agrees with ours', () => {
  for (const [name, mnemonics] of Object.entries(GROUPS)) {
    it.skipIf(forms(mnemonics).length === 0)(`on ${name}`, () =>
      compare(name, new SnippetGenerator(seed, [forms(mnemonics)], { floats: FLOAT_GROUPS.has(name) })),
    );
  }

  it('on all of them mixed', () => {
    const groups = Object.values(GROUPS)
      .map(forms)
      .filter((group) => group.length > 0);
    compare('mixed', new SnippetGenerator(seed, groups, { longest: 8, floats: true }));
  });

  it('on jumps, calls, loops and code that changes itself', () => {
    const groups = [GROUPS['arithmetic']!, GROUPS['move']!, GROUPS['shifts']!].map(forms);
    compare('branches', new SnippetGenerator(seed, groups, { longest: 6, branches: true }));
  });
});

/**
 * The host's own CPU judges ours: random snippets of every group of instructions, and registers, flags (but those the manual leaves
 * undefined) and memory must come out the same, and so must where they fault and with which error code. SOFTCVM_SEED repeats a run,
 * SOFTCVM_SNIPPETS sets the number per group; a quarter as many lie at the edges of pages.
 */
import { describe, expect, it } from 'vitest';
import { fixedSnippets } from '../oracle/fixed-snippets.ts';
import { formsOf, ZEN3_ONLY } from '../oracle/forms.ts';
import { FLOAT_GROUPS, GROUPS } from '../oracle/groups.ts';
import { hostIsZen3, hostUnfit, hostVendor, runOnHost } from '../oracle/host-cpu.ts';
import { differences, faultDifferences, type Snippet } from '../oracle/snippet.ts';
import { SnippetGenerator } from '../oracle/snippet-generator.ts';
import { AT_PAGE_EDGES, SIDE_BY_SIDE, snippetProgram } from '../oracle/snippet-program.ts';
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
function judge(snippets: readonly Snippet[], layout = SIDE_BY_SIDE): string[] {
  const program = snippetProgram(snippets, layout);
  const want = runOnHost(program);
  const machine = new UserMachine(program);
  try {
    const got = machine.run();
    return snippets.flatMap((snippet, n) => {
      const [ours, theirs] = [program.outcome(n, got), program.outcome(n, want)];
      const found = [...differences(snippet, ours, theirs), ...faultDifferences(ours, theirs)];
      const bytes = Buffer.from(snippet.code).toString('hex');
      return found.length === 0
        ? []
        : [`${snippet.text} (${bytes})\n    ${found.slice(0, 6).join('\n    ')}`];
    });
  } finally {
    machine.close();
  }
}

function compare(name: string, generator: SnippetGenerator, layout = SIDE_BY_SIDE): void {
  const many = layout === AT_PAGE_EDGES ? Math.ceil(count / 4) : count;
  console.log(`${name}: SOFTCVM_SEED=${seed}, ${many} snippets`);
  const wrong: string[] = [];
  for (let done = 0; done < many; done += BATCH) {
    const snippets = Array.from({ length: Math.min(BATCH, many - done) }, (_, n) => generator.next(n));
    wrong.push(...judge(snippets, layout));
  }
  expect(wrong.slice(0, REPORTED).join('\n')).toBe('');
}

describe.skipIf(unfit !== undefined)('the host CPU agrees with ours', () => {
  for (const [name, mnemonics] of Object.entries(GROUPS)) {
    it.skipIf(forms(mnemonics).length === 0)(`on ${name}`, () =>
      compare(name, new SnippetGenerator(seed, [forms(mnemonics)], { floats: FLOAT_GROUPS.has(name) })),
    );
  }

  for (const [name, mnemonics] of Object.entries(GROUPS)) {
    it.skipIf(forms(mnemonics).length === 0)(`on ${name} where pages end: on what faults, and where`, () => {
      const options = { floats: FLOAT_GROUPS.has(name), edges: true, longest: 2 };
      compare(name, new SnippetGenerator(seed, [forms(mnemonics)], options), AT_PAGE_EDGES);
    });
  }

  it('on all of them mixed', () => {
    const groups = Object.values(GROUPS)
      .map(forms)
      .filter((group) => group.length > 0);
    compare('mixed', new SnippetGenerator(seed, groups, { longest: 8, floats: true }));
  });

  it('on branches to addresses that are not canonical, and on the longest instructions', () => {
    expect(judge(fixedSnippets()).join('\n')).toBe('');
  });

  it('on jumps, calls, loops and code that changes itself', () => {
    const groups = [GROUPS['arithmetic']!, GROUPS['move']!, GROUPS['shifts']!].map(forms);
    compare('branches', new SnippetGenerator(seed, groups, { longest: 6, branches: true }));
  });
});

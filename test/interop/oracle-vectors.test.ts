/** The recorded vectors are what this host's CPU says; with SOFTCVM_RECORD=1 they are written anew. */
import { describe, expect, it } from 'vitest';
import { hostIsZen3, hostUnfit, runOnHost } from '../oracle/host-cpu.ts';
import { differences, type Snippet } from '../oracle/snippet.ts';
import { snippetProgram } from '../oracle/snippet-program.ts';
import {
  outcomeOf,
  readVectors,
  type Vector,
  vectorOf,
  vectorSnippets,
  writeVectors,
} from '../oracle/vectors.ts';

const unfit =
  hostUnfit() ?? (hostIsZen3() ? undefined : 'the vectors come from an AMD CPU of the Zen 3 generation');
if (unfit) console.log(`vectors not checked: ${unfit}`);

function ask(snippets: readonly Snippet[]): Vector[] {
  const program = snippetProgram(snippets);
  const output = runOnHost(program);
  return snippets.map((snippet, n) => vectorOf(snippet, program.outcome(n, output)));
}

describe.skipIf(unfit !== undefined)('recorded vectors', () => {
  it('are what the host CPU says', () => {
    const snippets = vectorSnippets();
    const fresh = Object.fromEntries(Object.entries(snippets).map(([name, list]) => [name, ask(list)]));
    if (process.env['SOFTCVM_RECORD']) writeVectors(fresh);
    const recorded = readVectors();
    for (const [name, list] of Object.entries(snippets)) {
      list.forEach((snippet, n) => {
        const want = outcomeOf(snippet, recorded[name]![n]!);
        expect(differences(snippet, outcomeOf(snippet, fresh[name]![n]!), want)).toEqual([]);
      });
    }
  });
});

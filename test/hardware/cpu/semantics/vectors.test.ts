/** Our core against answers that an AMD CPU gave to random snippets (test/oracle/vectors.ts; recorded by test/interop). */
import { describe, expect, it } from 'vitest';
import { differences } from '../../../oracle/snippet.ts';
import { snippetProgram } from '../../../oracle/snippet-program.ts';
import { UserMachine } from '../../../oracle/user-machine.ts';
import { outcomeOf, readVectors, vectorSnippets } from '../../../oracle/vectors.ts';

const recorded = readVectors();

describe('instructions give what an AMD CPU gave', () => {
  for (const [name, snippets] of Object.entries(vectorSnippets())) {
    it(`in 150 snippets of ${name}`, () => {
      const vectors = recorded[name]!;
      expect(vectors).toHaveLength(150);
      expect(snippets.map(({ code }) => Buffer.from(code).toString('hex'))).toEqual(
        vectors.map(({ code }) => code),
      );
      const program = snippetProgram(snippets);
      const machine = new UserMachine(program);
      const output = machine.run();
      machine.close();
      const wrong = snippets.flatMap((snippet, n) => {
        const found = differences(snippet, program.outcome(n, output), outcomeOf(snippet, vectors[n]!));
        return found.length === 0 ? [] : [`${snippet.text}: ${found.slice(0, 4).join(', ')}`];
      });
      expect(wrong).toEqual([]);
    });
  }
});

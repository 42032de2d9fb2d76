import { describe, expect, it } from 'vitest';
import { Trace } from '../../src/base/trace.ts';

const event = (what: string) => ({ kind: 'page', who: 'kernel', what }) as const;

describe('a change that is told when it is whole', () => {
  const start = (hear: (what: string, trace: Trace) => void = () => {}) => {
    const trace = new Trace();
    const heard: string[] = [];
    trace.listen(({ what }) => {
      heard.push(what);
      hear(what, trace);
    });
    return { trace, heard };
  };

  it('is heard in its order when the outermost change is over', () => {
    const { trace, heard } = start();
    trace.emit(event('a'));
    trace.tellAfter(() => {
      trace.emit(event('b'));
      trace.tellAfter(() => trace.emit(event('c')));
      trace.emit(event('d'));
      expect(heard).toEqual(['a']);
    });
    expect(heard).toEqual(['a', 'b', 'c', 'd']);
    trace.emit(event('e'));
    expect(heard).toEqual(['a', 'b', 'c', 'd', 'e']);
  });

  it('is heard also when it fails, and its result is the caller’s', () => {
    const { trace, heard } = start();
    const fail = (): never => {
      trace.emit(event('a'));
      throw new Error('half done');
    };
    expect(() => trace.tellAfter(fail)).toThrow('half done');
    expect(heard).toEqual(['a']);
    expect(trace.tellAfter(() => 7)).toBe(7);
  });

  it('may be followed by changes that its listeners make: what comes later is heard later', () => {
    const { trace, heard } = start((what) => {
      if (what !== 'a') return;
      trace.tellAfter(() => trace.emit(event('c')));
      trace.emit(event('d'));
    });
    trace.tellAfter(() => {
      trace.emit(event('a'));
      trace.emit(event('b'));
    });
    expect(heard).toEqual(['a', 'b', 'c', 'd']);
  });

  it('is heard in the same order by all, whatever one of them brings about', () => {
    const { trace, heard } = start((what) => {
      if (what === 'a') trace.emit(event('c'));
    });
    const second: string[] = [];
    trace.listen(({ what }) => second.push(what));
    trace.tellAfter(() => {
      trace.emit(event('a'));
      trace.emit(event('b'));
    });
    trace.emit(event('a'));
    expect([heard, second]).toEqual([
      ['a', 'b', 'c', 'a', 'c'],
      ['a', 'b', 'c', 'a', 'c'],
    ]);
  });

  it('a failure is told to those who listen for failures at once', () => {
    const { trace, heard } = start();
    const failures: string[] = [];
    trace.listenToFailures(({ what }) => failures.push(what));
    trace.tellAfter(() => {
      trace.fail(event('a'));
      expect([failures, heard]).toEqual([['a'], []]);
    });
    expect(heard).toEqual(['a']);
  });
});

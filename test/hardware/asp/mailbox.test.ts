import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import type { TraceEvent } from '../../../src/base/trace.ts';
import { CMD, type Guest, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const COMMANDS = Object.values(CMD);

/** What holds of every entry of the table, whatever commands did. Contexts: frames in state Context. */
function checkTable(): { contexts: number } {
  const { rmp, memory } = machine;
  let contexts = 0;
  for (let frame = 0; frame < memory.frameCount; frame++) {
    const entry = rmp.entry(frame as Pfn);
    const state = rmp.state(frame as Pfn);
    const isOwn = frame * 4096 >= rmp.base && frame * 4096 < rmp.end;
    const wrong: string[] = [];
    const must = (holds: boolean, what: string): void => {
      if (!holds) wrong.push(`frame ${frame}, ${state}: ${what}`);
    };
    must(!isOwn || !rmp.initialised || state === 'firmware', 'is the RMP');
    const { asid, gpa, validated, vmsa, large } = entry;
    must(
      entry.assigned || (asid === 0 && gpa === 0 && !validated && !vmsa && !large),
      'not assigned, but not empty',
    );
    must(!validated || asid > 0, 'validated without an ASID');
    must(asid > 0 || !vmsa || state === 'context', 'marked as VMSA without an ASID');
    const tag = memory.encryption.keyOfFrame(frame as Pfn);
    must(state !== 'context' || (tag !== 0 && !large), 'a context that is not encrypted');
    expect(wrong).toEqual([]);
    if (state === 'context') contexts++;
  }
  return { contexts };
}

describe('the mailbox', () => {
  it.each([
    [0x00],
    [0x01],
    [0x80],
    [0x96],
    [0xc0],
    [0xc1],
    [0xc2],
    [0xc3],
    [0xca],
    [0xcf],
    [0xffff_ffff],
    [-1],
    [1.5],
    [Number.NaN],
  ])('answers INVALID_COMMAND to %d', (command) => {
    machine = new Machine().init();
    expect(machine.asp.execute(command, machine.buffer)).toBe(0x11);
  });

  it.each([-8, 1.5, Number.NaN, 1 << 30, 2 ** 52, Number.POSITIVE_INFINITY])(
    'answers INVALID_ADDRESS for a buffer at %d',
    (at) => {
      machine = new Machine().init();
      for (const command of COMMANDS) {
        if (command === CMD.DF_FLUSH) continue;
        expect(machine.asp.execute(command, at as Spa)).toBe(9);
      }
    },
  );

  it('takes no buffer from the RMP, nor from below', () => {
    machine = new Machine().init();
    expect(machine.asp.execute(CMD.GCTX_CREATE, machine.rmp.base)).toBe(9);
    expect(machine.asp.execute(CMD.GCTX_CREATE, 4096 as Spa)).toBe(9);
  });

  it('touches nothing of what a chip keeps inside', () => {
    machine = new Machine().init();
    const inside = machine.memory.allocateSilicon(0, machine.memory.owner('core')) as number;
    const at = (inside * 4096) as Spa;
    machine.memory.bytes.fill(0x5a, at, at + 4096);
    for (const command of COMMANDS)
      if (command !== CMD.DF_FLUSH) expect(machine.asp.execute(command, at)).toBe(9);
    expect(machine.run(CMD.PLATFORM_STATUS, [[0, 8, at]])).toBe(9);
    expect(
      machine.run(CMD.FEATURE_INFO, [
        [0, 4, 16],
        [8, 8, at],
      ]),
    ).toBe(9);
    expect(machine.run(CMD.GCTX_CREATE, [[0, 8, at]])).toBe(0x1a);
    expect(
      machine.run(CMD.VLEK_LOAD, [
        [0, 4, 16],
        [8, 8, at],
      ]),
    ).toBe(9);
    expect(machine.reclaim(at)).toBe(9);
    expect(machine.memory.bytes.subarray(at, at + 4096).every((byte) => byte === 0x5a)).toBe(true);
  });

  it('takes a buffer that ends where memory ends, and none of a command that has none', () => {
    machine = new Machine().init();
    const end = machine.memory.frameCount * 4096;
    const context = machine.firmwarePage();
    machine.memory.store64((end - 8) as Spa, BigInt(context));
    expect(machine.asp.execute(CMD.GCTX_CREATE, (end - 8) as Spa)).toBe(0);
    expect(machine.asp.execute(CMD.GCTX_CREATE, (end - 7) as Spa)).toBe(9);
    expect(machine.run(CMD.PLATFORM_STATUS, [[0, 8, end]])).toBe(9);
    expect(machine.asp.execute(CMD.DF_FLUSH, 0 as Spa)).toBe(0);
  });

  it('takes a buffer at any address, across pages too', () => {
    machine = new Machine().init();
    const pages = machine.page(1);
    const context = machine.firmwarePage();
    for (const at of [pages + 1, pages + 4092, pages + 4095]) {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, BigInt(context), true);
      machine.memory.write(at as Spa, bytes);
      expect(machine.asp.execute(CMD.GCTX_CREATE, at as Spa)).toBe(0);
      expect(machine.asp.execute(CMD.DECOMMISSION, at as Spa)).toBe(0);
    }
  });

  it.each([
    ['in a guest’s page', 0x100, 0x16],
    ['that ends in one', -8, 0x0d],
  ])('takes a buffer %s as the host sees it', (_what, offset, status) => {
    machine = new Machine().init();
    machine.startGuest();
    const second = machine.createContext();
    machine.launchStart(second);
    const pages = machine.page(1);
    const at = (pages + 4096 + offset) as Spa;
    // SNP_ACTIVATE of the second guest, with ASID 2; what of it lies in the second page is written by the first guest.
    const view = new DataView(new ArrayBuffer(16));
    view.setBigUint64(0, BigInt(second), true);
    view.setUint32(8, 2, true);
    const bytes = new Uint8Array(view.buffer);
    machine.memory.write(at, bytes);
    const inGuest = Math.max(at, pages + 4096) as Spa;
    const { encryption } = machine.memory;
    encryption.writeUnder(encryption.keyOf(1), inGuest, bytes.subarray(inGuest - at));
    expect(machine.asp.execute(CMD.ACTIVATE, at)).toBe(status);
    expect(machine.activate(second, 2)).toBe(0);
  });

  it('ignores the C-bit of addresses', () => {
    machine = new Machine().init();
    const context = machine.firmwarePage();
    const marked = BigInt(context) | (1n << 51n);
    expect(machine.run(CMD.GCTX_CREATE, [[0, 8, marked]])).toBe(0);
    expect(
      machine.run(CMD.LAUNCH_START, [
        [0, 8, marked],
        [8, 8, 0x30000n],
      ]),
    ).toBe(0);
    expect(machine.activate(context, 1)).toBe(0);
    const page = machine.preGuestPage(0x1000);
    const update = [
      [0, 8, marked],
      [8, 4, 2],
      [16, 8, BigInt(page) | (1n << 51n)],
    ] as const;
    expect(machine.run(CMD.LAUNCH_UPDATE, update)).toBe(0);
  });

  it.each([
    ['bit 63', 1n << 63n],
    ['bit 60', 1n << 60n],
    ['bit 53', 1n << 53n],
    ['all bits', 0xffff_ffff_ffff_f000n],
  ])('takes an address with %s set for a page that the RMP does not cover', (_what, far) => {
    machine = new Machine().init();
    const context = machine.startGuest();
    const update = (gctx: bigint, page: bigint) =>
      machine.run(CMD.LAUNCH_UPDATE, [
        [0, 8, gctx],
        [8, 4, 2],
        [16, 8, page],
      ]);
    expect(update(far, far)).toBe(0x10);
    expect(update(BigInt(context), far)).toBe(0x1a);
    expect(update(BigInt(context), far | 1n)).toBe(0x16);
    expect(update(far | 0x800n, far)).toBe(0x16);
    expect(machine.run(CMD.GCTX_CREATE, [[0, 8, far]])).toBe(0x1a);
    expect(machine.run(CMD.GCTX_CREATE, [[0, 8, far | 1n]])).toBe(0x16);
    expect(machine.run(CMD.PLATFORM_STATUS, [[0, 8, far]])).toBe(9);
    expect(machine.run(CMD.PLATFORM_STATUS, [[0, 8, far | 0xfffn]])).toBe(0x16);
  });

  it('fails the nth execution of a command that a test names, which then does nothing', () => {
    machine = new Machine().init();
    machine.asp.inject({ command: CMD.GCTX_CREATE, nth: 2, status: 0x14 });
    const pages = [machine.firmwarePage(), machine.firmwarePage(), machine.firmwarePage()];
    const create = (page: Spa) => machine.run(CMD.GCTX_CREATE, [[0, 8, page]]);
    expect(pages.map(create)).toEqual([0, 0x14, 0]);
    expect(pages.map((page) => machine.stateOf(page))).toEqual(['context', 'firmware', 'context']);
  });

  it('names in the trace the answer of a command, or that there is none', () => {
    machine = new Machine();
    const told: unknown[] = [];
    machine.trace.listen(({ kind, status }) => kind === 'call' && told.push(status));
    machine.asp.inject({ command: CMD.DF_FLUSH, nth: 1, status: -1 });
    machine.asp.inject({ command: CMD.DF_FLUSH, nth: 1, status: 0x77 });
    for (let i = 0; i < 3; i++) machine.run(CMD.DF_FLUSH);
    expect(told).toEqual(['no answer', '0x77', 'WBINVD_REQUIRED']);
  });

  it.each(COMMANDS)('leaves every page as it was when command %#x fails on purpose', (command) => {
    machine = new Machine().init();
    const context = machine.startGuest();
    const page = machine.preGuestPage(0x1000);
    const before = tableOf();
    machine.asp.inject({ command, nth: 1, status: 0x13 });
    expect(
      machine.run(command, [
        [0, 8, context],
        [8, 4, 2],
        [16, 8, page],
      ]),
    ).toBe(0x13);
    expect(tableOf()).toBe(before);
    checkTable();
  });

  const tableOf = (): string =>
    Array.from({ length: machine.memory.frameCount }, (_, frame) => machine.rmp.state(frame as Pfn)).join();
});

describe('any commands', () => {
  const PAGES = 5;
  const page = fc.nat(PAGES - 1);
  const asid = fc.constantFrom(0, 1, 1, 2, 2);
  /** A page of the machine (or the RMP, the first page, one beyond memory), small numbers, anything. */
  const field = fc.oneof(
    {
      weight: 5,
      arbitrary: fc.record({ page: fc.nat(PAGES + 2), offset: fc.constantFrom(0, 0, 0, 0, 0, 0, 1, 0xfff) }),
    },
    {
      weight: 2,
      arbitrary: fc.constantFrom(0n, 1n, 2n, 3n, 4n, 5n, 6n, 8n, 0x10n, 0x20n, 0x30000n, 0xb0000n),
    },
    { weight: 1, arbitrary: fc.bigInt(0n, (1n << 64n) - 1n) },
  );
  const step = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant('command' as const),
        command: fc.constantFrom(...COMMANDS),
        fields: fc.array(field, { maxLength: 8 }),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant('rmpupdate' as const),
        page,
        asid,
        immutable: fc.boolean(),
        assigned: fc.boolean(),
      }),
    },
    {
      weight: 2,
      arbitrary: fc.record({
        kind: fc.constant('launch' as const),
        page,
        asid,
        policy: fc.constantFrom(0x30000n, 0xb0000n),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant('update' as const),
        context: page,
        page,
        asid,
        type: fc.nat(7),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('init' as const) }) },
    {
      weight: 6,
      arbitrary: fc.record({
        kind: fc.constant('pages' as const),
        command: fc.nat(7),
        pages: fc.tuple(page, page, page),
      }),
    },
  );
  const PAGE_COMMANDS = [
    CMD.DECOMMISSION,
    CMD.RECLAIM,
    CMD.LAUNCH_FINISH,
    CMD.GCTX_CREATE,
    CMD.GUEST_STATUS,
    CMD.PLATFORM_STATUS,
    CMD.DBG_DECRYPT,
    CMD.DBG_ENCRYPT,
  ];
  type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

  /** Does a step; a status, where it is one command. */
  function perform(s: Step, pages: readonly Spa[]): readonly [command: number, status: number] | undefined {
    switch (s.kind) {
      case 'command': {
        const fields = s.fields.map((value, i) => {
          const number = typeof value === 'bigint' ? value : BigInt(pages[value.page]! + value.offset);
          return [i * 8, 8, number] as const;
        });
        return [s.command, machine.run(s.command, fields)];
      }
      case 'rmpupdate': {
        const owner = s.assigned ? s.asid : 0;
        const state = { gpa: owner === 0 ? 0 : s.page * 4096, asid: owner, large: false };
        machine.rmp.rmpupdate(pages[s.page]!, {
          ...state,
          immutable: s.assigned && s.immutable,
          assigned: s.assigned,
        });
        return undefined;
      }
      case 'launch': {
        const at = pages[s.page]!;
        machine.rmp.rmpupdate(at, { gpa: 0, asid: 0, immutable: true, assigned: true, large: false });
        machine.run(CMD.GCTX_CREATE, [[0, 8, at]]);
        machine.launchStart(at, s.policy);
        return [CMD.ACTIVATE, machine.activate(at, s.asid)];
      }
      case 'update': {
        const at = pages[s.page]!;
        machine.rmp.rmpupdate(at, {
          gpa: s.page * 4096,
          asid: s.asid,
          immutable: true,
          assigned: true,
          large: false,
        });
        return [CMD.LAUNCH_UPDATE, machine.launchUpdate(pages[s.context]!, at, s.type)];
      }
      case 'pages': {
        const command = PAGE_COMMANDS[s.command]!;
        const count = s.command < 4 || command === CMD.PLATFORM_STATUS ? 1 : 3;
        return [
          command,
          machine.run(
            command,
            s.pages.slice(0, count).map((n, i) => [i * 8, 8, pages[n]!] as const),
          ),
        ];
      }
      default:
        machine.run(CMD.INIT_EX, [[0, 4, 1]]);
        machine.asp.cachesWrittenBack();
        return [CMD.DF_FLUSH, machine.run(CMD.DF_FLUSH)];
    }
  }

  it('never throw, whatever bytes they have, and keep the table in order', () => {
    const succeeded = new Set<number>();
    fc.assert(
      fc.property(fc.array(step, { minLength: 30, maxLength: 80 }), (steps) => {
        machine?.close();
        machine = new Machine({ bytes: 2 << 20, generation: 'turin' }).init();
        const pages = Array.from({ length: PAGES }, () => machine.page());
        pages.push(machine.rmp.base, 0 as Spa, (1 << 30) as Spa);
        for (const s of steps) {
          const done = perform(s, pages);
          if (done === undefined) continue;
          const [command, status] = done;
          expect(status).toBeGreaterThanOrEqual(0);
          expect(status).toBeLessThan(0x28);
          if (status === 0) succeeded.add(command);
        }
        checkTable();
      }),
      { numRuns: 200 },
    );
    // The histories are not refusals alone.
    expect(succeeded.size).toBeGreaterThan(9);
  }, 60_000);

  it('in a full life leave nothing behind', () => {
    machine = new Machine().init();
    const used: Spa[] = [];
    for (let round = 0; round < 20; round++) {
      const context = machine.startGuest({ asid: 1 + (round % 3) });
      const asid = 1 + (round % 3);
      const pages = [1, 3, 4].map((type) => {
        const page = machine.preGuestPage(type * 4096, new Uint8Array(4096).fill(round), asid);
        expect(machine.launchUpdate(context, page, type)).toBe(0);
        return page;
      });
      expect(machine.launchFinish(context)).toBe(0);
      expect(checkTable().contexts).toBe(1);
      expect(machine.run(CMD.DECOMMISSION, [[0, 8, context]])).toBe(0);
      expect(machine.reclaim(context)).toBe(0);
      for (const page of [...pages, context]) machine.rmpupdate(page, { assigned: false });
      used.push(...pages, context);
      machine.asp.cachesWrittenBack();
      expect(machine.run(CMD.DF_FLUSH)).toBe(0);
    }
    expect(used.every((page) => machine.stateOf(page) === 'hypervisor')).toBe(true);
    checkTable();
  });
});

describe('secrets', () => {
  /** Every needle that a host must not find: keys of messages, a guest's bytes. */
  function needles(guest: Guest, content: Uint8Array): Buffer[] {
    return [0, 1, 2, 3].map((n) => Buffer.from(guest.vmpck(n))).concat(Buffer.from(content.subarray(0, 16)));
  }

  it('are in no frame, no trace event and no error', () => {
    const events: TraceEvent[] = [];
    machine = new Machine({ signatures: 'rfc6979' });
    machine.trace.listen((event) => events.push(event));
    machine.init();
    const content = new Uint8Array(4096).map((_, i) => (i * 37) & 0xff);
    const context = machine.startGuest();
    const page = machine.preGuestPage(0x1000, content);
    machine.launchUpdate(context, page, 1);
    const guest = machine.finishGuest(context);
    guest.report();
    guest.ask(3, new Uint8Array(32));
    const ram = Buffer.from(machine.read(0 as Spa, machine.memory.frameCount * 4096));
    const told = JSON.stringify(events);
    const { secret } = machine.chip.fuses;
    for (const needle of [...needles(guest, content), Buffer.from(secret)]) {
      expect(ram.includes(needle)).toBe(false);
      expect(told).not.toContain(hex(needle));
      expect(told).not.toContain(needle.toString('base64'));
    }
    // The same search finds a leak that is planted.
    const leak = machine.page();
    machine.memory.write(leak, guest.vmpck(0));
    const leaky = Buffer.from(machine.read(0 as Spa, machine.memory.frameCount * 4096));
    expect(leaky.includes(needles(guest, content)[0]!)).toBe(true);
    expect(events.some(({ who, what }) => who === 'firmware' && what === 'SNP_LAUNCH_UPDATE')).toBe(true);
    expect(events.some(({ what, why }) => what === 'guest-valid' && why === 'SNP_LAUNCH_UPDATE')).toBe(true);
  });

  it('of a guest that is gone are not in its context page', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    const key = Buffer.from(guest.vmpck(0));
    machine.run(CMD.DECOMMISSION, [[0, 8, guest.context]]);
    const ram = Buffer.from(machine.read(0 as Spa, machine.memory.frameCount * 4096));
    expect(ram.includes(key)).toBe(false);
    expect(machine.read(guest.context, 4096).every((byte) => byte === 0)).toBe(true);
  });
});

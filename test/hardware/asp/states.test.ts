/** Which states of platform, guest and pages each command wants, as literal tables; and that a command which refuses changes no page. */
import { afterEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { CMD, expectSuccess, type Field, type Guest, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const DEBUG = 0xb0000n;
const OK = 0;
const INVALID_PLATFORM_STATE = 1;
const INVALID_GUEST_STATE = 2;
const INACTIVE = 8;
const INVALID_ADDRESS = 9;
const INVALID_GUEST = 0x10;
const ACTIVE = 0x12;
const INVALID_PARAM = 0x16;
const INVALID_PAGE_SIZE = 0x19;
const INVALID_PAGE_STATE = 0x1a;
const INVALID_PAGE_OWNER = 0x1c;

/** Every entry of the RMP, in short. */
const table = (): string =>
  Array.from({ length: machine.memory.frameCount }, (_, frame) => {
    const { gpa, asid, permissions, large } = machine.rmp.entry(frame as Pfn);
    return [machine.rmp.state(frame as Pfn), gpa, asid, permissions, large].join(' ');
  }).join();

/** Runs a command; when it refuses, no page may have changed. */
function refusesCleanly(command: number, fields: readonly Field[]): number {
  const before = table();
  const status = machine.run(command, fields);
  if (status !== OK) expect(table()).toBe(before);
  return status;
}

describe('commands on a guest', () => {
  /** What a command needs beside the context: pages of the machine that are as it wants them. */
  interface Pages {
    readonly preGuest: Spa;
    readonly firmware: Spa;
    readonly host: Spa;
    readonly guest?: Guest;
  }
  const COMMANDS: Readonly<Record<string, readonly [command: number, fields: (pages: Pages) => Field[]]>> = {
    DECOMMISSION: [CMD.DECOMMISSION, () => []],
    ACTIVATE: [CMD.ACTIVATE, () => [[8, 4, 2]]],
    GUEST_STATUS: [CMD.GUEST_STATUS, ({ firmware }) => [[8, 8, firmware]]],
    GUEST_REQUEST: [
      CMD.GUEST_REQUEST,
      ({ host, firmware, guest }) => [
        [8, 8, guest?.request ?? host],
        [16, 8, firmware],
      ],
    ],
    LAUNCH_START: [CMD.LAUNCH_START, () => [[8, 8, DEBUG]]],
    LAUNCH_UPDATE: [
      CMD.LAUNCH_UPDATE,
      ({ preGuest }) => [
        [8, 4, 2],
        [16, 8, preGuest],
      ],
    ],
    LAUNCH_FINISH: [CMD.LAUNCH_FINISH, () => []],
    DBG_DECRYPT: [
      CMD.DBG_DECRYPT,
      ({ preGuest, firmware }) => [
        [8, 8, preGuest],
        [16, 8, firmware],
      ],
    ],
    DBG_ENCRYPT: [
      CMD.DBG_ENCRYPT,
      ({ preGuest, host }) => [
        [8, 8, host],
        [16, 8, preGuest],
      ],
    ],
  };

  /** `context`: where the guest is; `prepare` brings a machine there. */
  const SITUATIONS: readonly (readonly [string, () => { context: Spa | bigint; guest?: Guest }])[] = [
    ['on a platform that is not initialised', () => ({ context: machine.page() })],
    ['with bits 11:0 of the context', () => ({ context: (initialised().createContext() + 16) as Spa })],
    ['with a page of the host as context', () => ({ context: initialised().page() })],
    ['with a page of the RMP as context', () => ({ context: initialised().rmp.base })],
    ['with no memory as context', () => ({ context: initialised() && 1n << 40n })],
    ['of a guest in state INIT', () => ({ context: initialised().createContext() })],
    ['of a guest in state LAUNCH', () => ({ context: launched() })],
    ['of a guest in state LAUNCH, active', () => ({ context: active() })],
    ['of a guest in state RUNNING', () => running()],
    ['of a guest that is gone', () => ({ context: gone() })],
  ];
  const initialised = (): Machine => machine.init();
  const launched = (): Spa => {
    const context = initialised().createContext();
    expectSuccess('LAUNCH_START', machine.launchStart(context, DEBUG));
    return context;
  };
  const active = (): Spa => initialised().startGuest({ policy: DEBUG });
  const running = (): { context: Spa; guest: Guest } => {
    const guest = initialised().runGuest({ policy: DEBUG });
    machine.memory.write(guest.request, guest.message(17, new Uint8Array(128)));
    return { context: guest.context, guest };
  };
  const gone = (): Spa => {
    const context = active();
    expectSuccess('DECOMMISSION', machine.run(CMD.DECOMMISSION, [[0, 8, context]]));
    return context;
  };

  // In the order of SITUATIONS.
  const P = INVALID_PLATFORM_STATE;
  const G = INVALID_GUEST;
  const X = INVALID_PARAM;
  const S = INVALID_GUEST_STATE;
  const STATUSES: Readonly<Record<string, readonly number[]>> = {
    DECOMMISSION: [P, X, G, X, G, OK, OK, OK, OK, G],
    ACTIVATE: [P, X, G, X, G, S, OK, ACTIVE, ACTIVE, G],
    GUEST_STATUS: [P, X, G, X, G, OK, OK, OK, OK, G],
    GUEST_REQUEST: [P, X, G, X, G, S, S, S, OK, G],
    LAUNCH_START: [P, X, G, X, G, OK, S, S, S, G],
    LAUNCH_UPDATE: [P, X, G, X, G, S, INACTIVE, OK, S, G],
    LAUNCH_FINISH: [P, X, G, X, G, S, INACTIVE, OK, S, G],
    DBG_DECRYPT: [P, X, G, X, G, INVALID_PAGE_OWNER, INVALID_PAGE_OWNER, OK, OK, G],
    DBG_ENCRYPT: [P, X, G, X, G, INVALID_PAGE_OWNER, INVALID_PAGE_OWNER, OK, OK, G],
  };

  for (const [name, statuses] of Object.entries(STATUSES))
    SITUATIONS.forEach(([situation, prepare], i) => {
      it(`${name} ${situation} answers 0x${statuses[i]!.toString(16)}`, () => {
        machine = new Machine();
        const { context, guest } = prepare();
        const [command, fields] = COMMANDS[name]!;
        const pages = {
          preGuest: machine.preGuestPage(0x5000),
          firmware: machine.firmwarePage(),
          host: machine.page(),
          ...(guest !== undefined && { guest }),
        };
        expect(refusesCleanly(command, [[0, 8, context], ...fields(pages)])).toBe(statuses[i]);
      });
    });

  it('of the tables are all that take a context, but ACTIVATE_EX, which has its own', () => {
    expect(Object.keys(STATUSES)).toEqual(Object.keys(COMMANDS));
  });
});

describe('commands on the platform', () => {
  const length = (bytes: number): Field => [0, 4, bytes];
  // Before SNP_INIT_EX, and after it. `page` is the host's before and firmware's after.
  const ROWS: readonly (readonly [string, number, (page: Spa) => Field[], number, number])[] = [
    ['PLATFORM_STATUS of SEV', 0x04, () => [], OK, INVALID_PAGE_STATE],
    [
      'GET_ID of SEV',
      0x0c,
      (page) => [
        [0, 8, page],
        [8, 4, 64],
      ],
      OK,
      INVALID_PAGE_STATE,
    ],
    ['SNP_INIT', 0x81, () => [], OK, INVALID_PLATFORM_STATE],
    ['SNP_SHUTDOWN', 0x82, () => [], OK, OK],
    ['SNP_PLATFORM_STATUS', 0x83, (page) => [[0, 8, page]], OK, OK],
    ['SNP_DF_FLUSH without WBINVD', 0x84, () => [], 0x0e, OK],
    ['SNP_INIT_EX', 0x85, () => [[0, 4, 1]], OK, INVALID_PLATFORM_STATE],
    ['SNP_SHUTDOWN_EX', 0x86, () => [length(8)], OK, OK],
    ['SNP_GCTX_CREATE', 0x93, (page) => [[0, 8, page]], INVALID_PLATFORM_STATE, OK],
    ['SNP_PAGE_RECLAIM', 0xc7, (page) => [[0, 8, page]], INVALID_PLATFORM_STATE, OK],
    ['SNP_PAGE_UNSMASH', 0xc8, () => [[0, 8, 0x40_0000]], INVALID_PLATFORM_STATE, INVALID_PAGE_STATE],
    ['SNP_PAGE_SET_STATE', 0xc6, (page) => [length(16), [8, 8, page]], INVALID_PLATFORM_STATE, OK],
    ['SNP_CONFIG', 0xc9, () => [], INVALID_PLATFORM_STATE, OK],
    ['SNP_COMMIT', 0xcb, () => [length(4)], OK, OK],
    ['SNP_VLEK_LOAD', 0xcd, (page) => [length(16), [8, 8, page]], INVALID_PLATFORM_STATE, 0x21],
    ['SNP_FEATURE_INFO', 0xce, (page) => [length(16), [8, 8, page]], OK, OK],
  ];
  it.each(ROWS)('%s answers before and after SNP is initialised', (_name, command, fields, before, after) => {
    machine = new Machine({ bytes: 8 << 20 });
    expect(machine.run(command, fields(machine.page()))).toBe(before);
    machine.close();
    machine = new Machine({ bytes: 8 << 20 }).init();
    expect(refusesCleanly(command, fields(machine.firmwarePage()))).toBe(after);
  });

  it('and those on a guest are all commands that the mailbox knows', () => {
    machine = new Machine().init();
    const known = Array.from({ length: 0x100 }, (_, command) => command).filter(
      (command) => machine.asp.execute(command, (1 << 30) as Spa) !== 0x11,
    );
    const onGuests = [0x90, 0x91, 0x92, 0x94, 0x95, 0xa0, 0xa1, 0xa2, 0xb0, 0xb1];
    expect(known).toEqual([...ROWS.map(([, command]) => command), ...onGuests].sort((a, b) => a - b));
  });
});

describe('commands on a page', () => {
  const STATES = [
    'hypervisor',
    'hv-fixed',
    'reclaim',
    'firmware',
    'context',
    'metadata',
    'pre-guest',
    'pre-swap',
    'guest-invalid',
    'guest-valid',
  ] as const;

  /** A page in a state: of the guest with ASID 1 where it is a guest's. */
  function pageIn(state: (typeof STATES)[number]): Spa {
    const at = machine.page();
    if (state === 'context') return machine.createContext();
    const isGuests = state.startsWith('pre-') || state.startsWith('guest-');
    machine.rmp.setEntry((at / 4096) as Pfn, {
      assigned: !state.startsWith('h'),
      large: false,
      immutable: ['hv-fixed', 'firmware', 'metadata', 'pre-guest', 'pre-swap'].includes(state),
      gpa: isGuests || state === 'metadata' ? 0x7000 : 0,
      asid: isGuests ? 1 : 0,
      vmsa: false,
      validated: state === 'pre-swap' || state === 'guest-valid',
      permissions: 0x1f,
    });
    expect(machine.stateOf(at)).toBe(state);
    return at;
  }

  const X = INVALID_PAGE_STATE;
  /** A row: what the page is to the command; statuses in the order of STATES, then for the RMP's own page and for no memory; the state of the page when it worked. */
  const ROWS: readonly (readonly [
    string,
    number,
    (page: Spa | bigint, context: Spa) => Field[],
    readonly number[],
    string?,
  ])[] = [
    [
      'GCTX_CREATE',
      CMD.GCTX_CREATE,
      (page) => [[0, 8, page]],
      [X, X, X, OK, X, X, X, X, X, X, INVALID_PARAM, X],
      'context',
    ],
    [
      'LAUNCH_UPDATE',
      CMD.LAUNCH_UPDATE,
      (page, context) => [
        [0, 8, context],
        [8, 4, 2],
        [16, 8, page],
      ],
      [X, X, X, X, X, X, OK, X, X, X, INVALID_PARAM, X],
      'guest-valid',
    ],
    [
      'GUEST_STATUS, for the answer',
      CMD.GUEST_STATUS,
      (page, context) => [
        [0, 8, context],
        [8, 8, page],
      ],
      [X, X, X, OK, X, X, X, X, X, X, INVALID_PARAM, INVALID_ADDRESS],
      'firmware',
    ],
    [
      'PLATFORM_STATUS, for the answer',
      CMD.PLATFORM_STATUS,
      (page) => [[0, 8, page]],
      [X, X, X, OK, X, X, X, X, X, X, INVALID_PARAM, INVALID_ADDRESS],
      'firmware',
    ],
    [
      'FEATURE_INFO, for the answer',
      CMD.FEATURE_INFO,
      (page) => [
        [0, 4, 16],
        [8, 8, page],
      ],
      [X, X, X, OK, X, X, X, X, X, X, INVALID_PARAM, INVALID_ADDRESS],
      'firmware',
    ],
    [
      'DBG_DECRYPT, for the source',
      CMD.DBG_DECRYPT,
      (page, context) => [
        [0, 8, context],
        [8, 8, page],
        [16, 8, machine.firmwarePage()],
      ],
      [X, X, X, X, X, X, OK, OK, OK, OK, INVALID_PARAM, X],
    ],
    [
      'DBG_DECRYPT, for the destination',
      CMD.DBG_DECRYPT,
      (page, context) => [
        [0, 8, context],
        [8, 8, machine.preGuestPage(0x9000)],
        [16, 8, page],
      ],
      [X, X, X, OK, X, X, X, X, X, X, INVALID_PARAM, X],
      'firmware',
    ],
    [
      'DBG_ENCRYPT, for the source',
      CMD.DBG_ENCRYPT,
      (page, context) => [
        [0, 8, context],
        [8, 8, page],
        [16, 8, machine.preGuestPage(0x9000)],
      ],
      [OK, OK, OK, OK, OK, OK, OK, OK, OK, OK, INVALID_PARAM, INVALID_ADDRESS],
    ],
    [
      'DBG_ENCRYPT, for the destination',
      CMD.DBG_ENCRYPT,
      (page, context) => [
        [0, 8, context],
        [8, 8, machine.page()],
        [16, 8, page],
      ],
      [X, X, X, X, X, X, OK, OK, X, X, INVALID_PARAM, X],
    ],
    [
      'GUEST_REQUEST, for the response, before the guest’s state',
      CMD.GUEST_REQUEST,
      (page, context) => [
        [0, 8, context],
        [8, 8, machine.page()],
        [16, 8, page],
      ],
      [X, X, X, INVALID_GUEST_STATE, X, X, X, X, X, X, INVALID_PARAM, X],
    ],
    [
      'PAGE_RECLAIM',
      CMD.RECLAIM,
      (page) => [[0, 8, page]],
      [OK, X, OK, OK, X, OK, OK, OK, OK, OK, INVALID_ADDRESS, INVALID_ADDRESS],
    ],
  ];

  for (const [name, command, fields, statuses, after] of ROWS)
    it.each(STATES.map((state, i) => [state, statuses[i]!] as const))(
      `${name}: a page in state %s answers %#x`,
      (state, status) => {
        machine = new Machine().init();
        const context = machine.startGuest({ policy: DEBUG });
        const page = pageIn(state);
        expect(refusesCleanly(command, fields(page, context))).toBe(status);
        if (status === OK && after !== undefined) expect(machine.stateOf(page)).toBe(after);
      },
    );

  for (const [name, command, fields, statuses] of ROWS)
    it(`${name}: a page of the RMP, and no memory at all`, () => {
      machine = new Machine().init();
      const context = machine.startGuest({ policy: DEBUG });
      expect(refusesCleanly(command, fields(machine.rmp.base, context))).toBe(statuses[10]);
      expect(refusesCleanly(command, fields(1n << 40n, context))).toBe(statuses[11]);
    });

  it.each([
    ['GCTX_CREATE', CMD.GCTX_CREATE, INVALID_PAGE_SIZE, INVALID_PAGE_STATE],
    ['PAGE_RECLAIM of 4 KiB', CMD.RECLAIM, INVALID_PAGE_SIZE, OK],
  ])('%s: the start of a 2 MiB firmware page, and a page inside of it', (_name, command, start, inside) => {
    machine = new Machine({ bytes: 32 << 20 }).init();
    const large = machine.page(9);
    machine.rmpupdate(large, { immutable: true, large: true });
    expect(refusesCleanly(command, [[0, 8, large]])).toBe(start);
    const before = table();
    expect(machine.run(command, [[0, 8, large + 4096]])).toBe(inside);
    expect(table()).toBe(before);
  });

  it('SET_STATE: a 2 MiB firmware page is none of 4 KiB', () => {
    machine = new Machine({ bytes: 32 << 20 }).init();
    const large = machine.page(9);
    const list = machine.page();
    machine.memory.store32(list, 1);
    machine.memory.store64((list + 8) as Spa, BigInt(large));
    machine.memory.store32((list + 16) as Spa, 2);
    machine.rmpupdate(large, { immutable: true, large: true });
    expect(
      refusesCleanly(CMD.SET_STATE, [
        [0, 4, 16],
        [8, 8, list],
      ]),
    ).toBe(INVALID_PAGE_STATE);
  });
});

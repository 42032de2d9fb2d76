/** What a core is made of, as its parts know each other. */
import type { Entropy } from '../../base/entropy.ts';
import type { Trace } from '../../base/trace.ts';
import type { Personality } from '../chip/personality.ts';
import type { HostMemory } from '../memory/host-memory.ts';
import type { DebugUnit } from './debug.ts';
import type { EncryptedGuest } from './encrypted-guest.ts';
import type { Events } from './events.ts';
import type { Intercepts } from './intercepts.ts';
import type { Interrupts } from './interrupts.ts';
import type { MemoryAccess } from './memory-access.ts';
import type { NestedWalker } from './nested-walk.ts';
import type { PageWalker } from './page-walk.ts';
import type { Registers } from './registers.ts';
import type { RmpCheck } from './rmp-check.ts';
import type { CoreTlb } from './tlb.ts';

export interface CoreParts {
  readonly id: number;
  readonly memory: HostMemory;
  readonly trace: Trace;
  /** What tells this chip's cores from another's. */
  readonly personality: Personality;
  readonly registers: Registers;
  readonly events: Events;
  readonly intercepts: Intercepts;
  readonly interrupts: Interrupts;
  readonly debug: DebugUnit;
  readonly nested: NestedWalker;
  readonly walker: PageWalker;
  readonly tlb: CoreTlb;
  readonly access: MemoryAccess;
  readonly guest: EncryptedGuest;
  readonly rmp: RmpCheck;
  /** What RDRAND and RDSEED give. */
  readonly entropy: Entropy;
}

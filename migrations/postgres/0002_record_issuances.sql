-- many issuances in one statement: what they need of each other (lock, keys, rows, history, events, and why not) is
-- decided beside the data, so that a transaction of the service costs three round trips however many rows it carries.

-- the cap and the fence as before, in one query instead of three: a batch of one row pays for each of them.
create or replace function user_coupons_fit_campaign() returns trigger language plpgsql as $$
declare
    misfit record;
begin
    -- the lock comes first and the campaign is read as it is under the lock, not as it was when the insert began.
    select written.slot_no, written.coupon_id, written.epoch as row_epoch, campaign.max_issue_count, campaign.epoch
        into misfit
        from written join (
            select coupon_id, epoch, max_issue_count from coupons
            where coupon_id in (select coupon_id from written)
            order by coupon_id
            for share
        ) campaign on campaign.coupon_id = written.coupon_id
        where written.slot_no > campaign.max_issue_count or written.epoch <> campaign.epoch
        limit 1;
    if not found then
        return null;
    end if;
    if misfit.slot_no > misfit.max_issue_count then
        raise exception 'slot % of coupon % is above its limit of %', misfit.slot_no, misfit.coupon_id, misfit.max_issue_count
            using errcode = 'check_violation', constraint = 'user_coupons_slot_within_limit';
    end if;
    raise exception 'coupon % is in epoch %, not %', misfit.coupon_id, misfit.epoch, misfit.row_epoch
        using errcode = 'check_violation', constraint = 'user_coupons_epoch_current';
end $$;

-- records issuances; one array element each. returns a line for each that did not go in, with its place (from 1) and
-- why not; no line at all when every one did. k_* are empty when no issuance has an idempotency key, else null for
-- those without one.
create function record_issuances(
    p_ids bigint[], p_coupons bigint[], p_users bigint[], p_slots bigint[], p_epochs bigint[], p_tokens text[],
    p_times bigint[], p_requests text[], p_events text[], p_lanes bigint[], p_topics text[], p_keys text[],
    p_headers text[], p_payloads bytea[],
    k_keys text[], k_fingerprints text[], k_responses text[], p_now bigint
) returns table (place bigint, outcome text) language plpgsql as $$
#variable_conflict use_column
declare
    -- claims of this transaction, each as key, line feed, fingerprint: a key may come twice in one batch.
    claimed text[] := '{}';
    went_in bigint[];
begin
    -- 1 lock the campaigns against change; issuing transactions do not wait for each other. what follows are
    -- statements of their own, so they see every fence written before the lock was granted.
    perform 1 from coupons where coupon_id = any (p_coupons) order by coupon_id for share;

    -- 2 claim the idempotency keys, in one order, so that two transactions queue instead of deadlocking.
    if cardinality(k_keys) > 0 then
        with asked as (
            insert into idempotency_keys (key, fingerprint, response, created_at)
            select asked.key, asked.fingerprint, asked.response, p_now
            from unnest(k_keys, k_fingerprints, k_responses) as asked (key, fingerprint, response)
            where asked.key is not null
            order by asked.key
            on conflict do nothing
            returning idempotency_keys.key || chr(10) || idempotency_keys.fingerprint as claim
        )
        select coalesce(array_agg(claim), '{}') into claimed from asked;
    end if;

    -- 3 insert what may be and does not collide; history and outbox follow exactly those.
    with wanted as materialized (
        select * from unnest(p_ids, p_coupons, p_users, p_slots, p_epochs, p_tokens, p_times, p_requests, p_events,
            p_lanes, p_topics, p_keys, p_headers, p_payloads, k_keys, k_fingerprints)
        as wanted (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, request_id, event_id,
            lane, topic, key, headers, payload, claim_key, claim_fingerprint)
    ), inserted as (
        insert into user_coupons
            (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, issued_at, changed_at)
        select wanted.user_coupon_id, wanted.coupon_id, wanted.user_id, wanted.slot_no, wanted.epoch,
            wanted.admission_token, wanted.issued_at, wanted.issued_at
        from wanted join coupons on coupons.coupon_id = wanted.coupon_id
        where coupons.epoch = wanted.epoch and wanted.slot_no <= coupons.max_issue_count
          and (wanted.claim_key is null or wanted.claim_key || chr(10) || wanted.claim_fingerprint = any (claimed))
          and not exists (
              select from issuance_fence where issuance_fence.admission_token = wanted.admission_token)
        on conflict do nothing
        returning user_coupon_id
    ), told as (
        insert into coupon_history
            (user_coupon_id, seq, coupon_id, user_id, slot_no, to_status, event_id, request_id, at)
        select user_coupon_id, 1, coupon_id, user_id, slot_no, 'ACTIVE', event_id, request_id, issued_at
        from wanted join inserted using (user_coupon_id)
    ), queued as (
        insert into outbox (event_id, lane, topic, key, headers, payload, created_at)
        select event_id, lane, topic, key, headers, payload, issued_at
        from wanted join inserted using (user_coupon_id)
    )
    select coalesce(array_agg(user_coupon_id), '{}') into went_in from inserted;
    if cardinality(went_in) = cardinality(p_ids) then
        return;
    end if;

    -- 4 why the others did not. the row that one collided with is committed by now: the insert waited for it.
    return query
        select wanted.place, case
            when coupons.coupon_id is null then 'NO_SUCH_COUPON'
            when coupons.epoch <> wanted.epoch then 'EPOCH_OVER'
            when wanted.slot_no > coupons.max_issue_count then 'ABOVE_LIMIT'
            when wanted.claim_key is not null
                and not wanted.claim_key || chr(10) || wanted.claim_fingerprint = any (claimed) then 'KEY_TAKEN'
            -- a repeat of an admission whose first answer was lost.
            when owned.admission_token = wanted.admission_token then 'INSERTED'
            when owned.user_coupon_id is not null then 'ALREADY_ISSUED'
            when fence.admission_token is not null then 'FENCED'
            else 'SLOT_TAKEN'
        end
        from unnest(p_ids, p_coupons, p_users, p_slots, p_epochs, p_tokens, k_keys, k_fingerprints) with ordinality
            as wanted (user_coupon_id, coupon_id, user_id, slot_no, epoch, admission_token, claim_key, claim_fingerprint,
                place)
        left join coupons on coupons.coupon_id = wanted.coupon_id
        left join user_coupons owned on owned.coupon_id = wanted.coupon_id and owned.user_id = wanted.user_id
        left join issuance_fence fence on fence.admission_token = wanted.admission_token
        where not wanted.user_coupon_id = any (went_in);

    -- 5 keys of those are given back: their requests came to nothing, and the next try may end otherwise.
    if cardinality(claimed) > 0 then
        delete from idempotency_keys where idempotency_keys.key in (
            select asked.key from unnest(p_ids, k_keys, k_fingerprints) as asked (user_coupon_id, key, fingerprint)
            where asked.key || chr(10) || asked.fingerprint = any (claimed)
            group by asked.key
            having not bool_or(asked.user_coupon_id = any (went_in)));
    end if;
end $$;
